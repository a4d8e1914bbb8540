//! A little file system under two clones: what is told to be the same is, or nothing is told.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::layers::Located;
use crate::map::{ContentMap, Extent};

const BLOCK: u64 = 4096;

/// What a block of a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Block {
    Hole,
    /// Preallocated.
    Zero,
    /// At this block of the disk.
    At(u64),
    /// In this block of the disk in another form: compressed, say.
    Unlocated(u64),
}

/// Disk blocks with their contents, two clones, and everything that was done to them.
struct World {
    disk: BTreeMap<u64, u64>,
    files: [Option<Vec<Block>>; 2],
    /// What the clones held at their freezes.
    frozen: [Vec<u64>; 2],
    /// Whether a clone was touched since: what a witness says.
    touched: [bool; 2],
    /// What comes at the next looks.
    script: Vec<Vec<Act>>,
    looks: Vec<usize>,
    next_content: u64,
}

const OLDER: usize = 0;
const NEWER: usize = 1;

/// What others do between two looks.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// The file moves a block to another place (a defragmentation).
    Move(usize, usize, u64),
    /// Its clone is ended, and its places are free.
    Drop(usize),
    /// Something else is written to a place that is free.
    Reuse(u64),
    /// The clone is written to.
    Overwrite(usize, usize),
    /// The clone is made to share a block of the other one.
    Share(usize, usize),
}

impl World {
    fn content(&self, block: Block) -> u64 {
        match block {
            Block::Hole | Block::Zero => 0,
            Block::At(place) | Block::Unlocated(place) => self.disk[&place],
        }
    }

    fn is_free(&self, place: u64) -> bool {
        let files = self.files.iter().flatten().flatten();
        !files
            .into_iter()
            .any(|block| matches!(block, Block::At(at) | Block::Unlocated(at) if *at == place))
    }

    fn fresh(&mut self, place: u64) {
        self.next_content += 1;
        self.disk.insert(place, self.next_content);
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Move(file, block, place) if self.is_free(place) => {
                let Some(Block::At(from)) = self.files[file].as_ref().map(|f| f[block % f.len()]) else {
                    return;
                };
                self.disk.insert(place, self.disk[&from]);
                let file_blocks = self.files[file].as_mut().unwrap();
                let nth = block % file_blocks.len();
                file_blocks[nth] = Block::At(place);
                self.touched[file] = true;
            }
            Act::Drop(file) => {
                self.files[file] = None;
                self.touched[file] = true;
            }
            Act::Reuse(place) if self.is_free(place) => self.fresh(place),
            Act::Overwrite(file, block) => {
                let places = 0..self.disk.len() as u64;
                let Some(place) = places.into_iter().find(|place| self.is_free(*place)) else {
                    return;
                };
                if self.files[file].is_some() {
                    self.fresh(place);
                    let blocks = self.files[file].as_mut().unwrap();
                    let nth = block % blocks.len();
                    blocks[nth] = Block::At(place);
                    self.touched[file] = true;
                }
            }
            Act::Share(file, block) => {
                let of_other = self.files[1 - file].as_ref();
                let shared = of_other.and_then(|blocks| blocks.get(block).copied());
                let mine = self.files[file].as_mut().and_then(|blocks| blocks.get_mut(block));
                if let (Some(shared), Some(mine)) = (shared, mine) {
                    *mine = shared;
                    self.touched[file] = true;
                }
            }
            Act::Move(..) | Act::Reuse(_) => {}
        }
    }

    /// Whatever comes before the next look.
    fn go_on(&mut self) {
        for act in self.script.pop().unwrap_or_default() {
            self.act(act);
        }
    }
}

struct TestClone {
    world: Rc<RefCell<World>>,
    file: usize,
}

impl Side for TestClone {
    fn extents(&self) -> io::Result<FileExtents> {
        let mut world = self.world.borrow_mut();
        world.go_on();
        world.looks.push(self.file);
        // An open file keeps its blocks; one that was dropped shows what is there now.
        let Some(blocks) = &world.files[self.file] else {
            return Err(io::ErrorKind::NotFound.into());
        };
        Ok(extents_of(blocks))
    }

    fn check(&self) -> Result<(), String> {
        let mut world = self.world.borrow_mut();
        world.go_on();
        match world.touched[self.file] {
            true => Err("touched".to_owned()),
            false => Ok(()),
        }
    }
}

fn extents_of(blocks: &[Block]) -> FileExtents {
    let mut located: Vec<Located> = Vec::new();
    let mut extents = Vec::new();
    for (nth, block) in (0..).zip(blocks) {
        let range = ByteRange::new(nth * BLOCK, BLOCK).unwrap();
        let content = match block {
            Block::Hole => continue,
            Block::Zero => Content::Zero,
            Block::Unlocated(_) => Content::Data,
            Block::At(place) => {
                let physical = place * BLOCK;
                match located.last_mut() {
                    Some(last)
                        if last.range.end() == range.start()
                            && last.physical + last.range.len() == physical =>
                    {
                        last.range = ByteRange::from_bounds(last.range.start(), range.end()).unwrap();
                    }
                    _ => located.push(Located { range, physical }),
                }
                Content::Data
            }
        };
        extents.push(Extent { range, content });
    }
    FileExtents {
        content: ContentMap::from_extents(blocks.len() as u64 * BLOCK, extents),
        located,
    }
}

/// The older file, and the newer one: what of it is shared, and what is its own.
fn files() -> impl Strategy<Value = (Vec<Block>, Vec<Block>)> {
    let block = || {
        prop_oneof![
            Just(Block::Hole),
            Just(Block::Zero),
            (0..24u64).prop_map(Block::At),
            (0..24u64).prop_map(Block::Unlocated),
        ]
    };
    // Mostly runs of places, as files have them.
    let older = proptest::collection::vec((block(), 1..4u64), 1..8).prop_map(|runs| {
        let mut blocks = Vec::new();
        for (block, len) in runs {
            for nth in 0..len {
                blocks.push(match block {
                    Block::At(place) => Block::At((place + nth) % 24),
                    other => other,
                });
            }
        }
        blocks
    });
    (
        older,
        proptest::collection::vec(proptest::option::weighted(0.4, block()), 1..24),
    )
        .prop_map(|(older, own)| {
            let newer = own.iter().enumerate().map(|(nth, own)| match own {
                Some(own) => *own,
                None => older.get(nth).copied().unwrap_or(Block::Hole),
            });
            let newer = newer.collect();
            (older, newer)
        })
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        (0..2usize, 0..24usize, 0..32u64).prop_map(|(file, block, place)| Act::Move(file, block, place)),
        (0..2usize).prop_map(Act::Drop),
        (0..32u64).prop_map(Act::Reuse),
        (0..2usize, 0..24usize).prop_map(|(file, block)| Act::Overwrite(file, block)),
        (0..2usize, 0..8usize).prop_map(|(file, block)| Act::Share(file, block)),
    ];
    prop_oneof![2 => Just(Vec::new()), 3 => proptest::collection::vec(act, 1..6)]
}

fn world(files: (Vec<Block>, Vec<Block>), script: Vec<Vec<Act>>) -> Rc<RefCell<World>> {
    let mut world = World {
        disk: (0..32).map(|place| (place, place + 1)).collect(),
        files: [Some(files.0), Some(files.1)],
        frozen: [Vec::new(), Vec::new()],
        touched: [false; 2],
        script,
        looks: Vec::new(),
        next_content: 1000,
    };
    for file in [OLDER, NEWER] {
        let blocks = world.files[file].clone().unwrap();
        world.frozen[file] = blocks.iter().map(|block| world.content(*block)).collect();
    }
    Rc::new(RefCell::new(world))
}

fn compared(world: &Rc<RefCell<World>>) -> Result<ChangedMap, NoLineage> {
    let side = |file| TestClone {
        world: Rc::clone(world),
        file,
    };
    let size = world.borrow().frozen[NEWER].len() as u64 * BLOCK;
    compare(&side(OLDER), &side(NEWER), size)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn what_is_told_to_be_the_same_is_or_nothing_is_told(files in files(), script in proptest::collection::vec(acts(), 0..5)) {
        let world = world(files, script);
        if let Ok(map) = compared(&world) {
            let world = world.borrow();
            prop_assert_eq!(&world.looks[..], [NEWER, OLDER]);
            for (nth, content) in world.frozen[NEWER].iter().enumerate() {
                let same = !map.is_changed(nth as u64 * BLOCK);
                prop_assert!(!same || world.frozen[OLDER].get(nth) == Some(content), "block {}", nth);
            }
        }
    }

    /// Where nobody does anything it is not told for nothing: places that are shared, and holes, are the same.
    #[test]
    fn what_is_shared_is_the_same(files in files()) {
        let map = compared(&world(files.clone(), Vec::new())).unwrap();
        for (nth, newer) in files.1.iter().enumerate() {
            let shared = files.0.get(nth) == Some(newer) && !matches!(newer, Block::Unlocated(_));
            prop_assert_eq!(!map.is_changed(nth as u64 * BLOCK), shared, "block {}", nth);
        }
    }
}

#[test]
fn what_was_data_and_is_a_hole_has_changed_and_so_has_what_lies_elsewhere() {
    use Block::{At, Hole, Unlocated, Zero};
    let older = vec![At(1), At(2), At(3), Hole, Hole, Zero, At(4), Unlocated(5), At(6)];
    let newer = vec![
        At(1),
        At(9),
        Hole,
        At(3),
        Hole,
        Hole,
        Zero,
        Unlocated(5),
        Unlocated(6),
        Hole,
    ];
    let map = compared(&world((older, newer), Vec::new())).unwrap();
    let same: Vec<u64> = (0..10).filter(|block| !map.is_changed(block * BLOCK)).collect();
    assert_eq!(same, [0, 4], "not behind the end of the older one either");
}
