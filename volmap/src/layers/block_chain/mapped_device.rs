//! Device-mapper devices, by their live tables.

use std::io;

use super::{BlockChain, by_number};
use crate::identity::Identity;
use crate::layers::dm_table::{Layout, Leg, Mirror, Target, targets};
use crate::layers::witness::Fact;
use crate::range::ByteRange;
use crate::store::{Below, Place, Reach, Segment, StoreId, StoreKind, Stripes};
use crate::sys::DeviceNumber;
use crate::sys::device_mapper::{DeviceStatus, TargetLine};

impl BlockChain<'_> {
    pub(super) fn mapped_device(&mut self, device: DeviceNumber, depth: usize) -> io::Result<StoreId> {
        let kind = StoreKind::DeviceMapper;
        let (status, table) = match self.live_table(device) {
            Ok(told) => told,
            Err(error) => {
                let reason = format!(
                    "its device-mapper table cannot be read ({error}); this needs root and /dev/mapper/control"
                );
                return self.opaque(device, kind, None, reason);
            }
        };
        let name = if status.uuid.is_empty() {
            &status.name
        } else {
            &status.uuid
        };
        let identity = Identity::new("dm", name).or_else(|_| by_number("dm", device))?;
        let pieces = match targets(&table) {
            Ok(targets) => self.pieces(device, &status, targets, depth)?,
            Err(error) => Err(error.to_string()),
        };
        match pieces {
            Ok(pieces) => self.add(device, kind, identity, below(&pieces)),
            Err(reason) => self.opaque(device, kind, Some(identity), reason),
        }
    }

    /// What a device is made of, which belongs to the witness from now on.
    fn live_table(&mut self, device: DeviceNumber) -> io::Result<(DeviceStatus, Vec<TargetLine>)> {
        let mapper = self.mapper()?;
        let status = mapper.device_status(device)?;
        let table = mapper.table(device)?;
        self.witness.remember(Fact::Table {
            mapper,
            device,
            status: status.clone(),
            table: table.clone(),
        });
        Ok((status, table))
    }

    /// The pieces of a table, or why it is not followed.
    fn pieces(
        &mut self,
        device: DeviceNumber,
        status: &DeviceStatus,
        targets: Vec<Target>,
        depth: usize,
    ) -> io::Result<Result<Vec<Stripes>, String>> {
        let mut pieces = Vec::new();
        for (number, Target { range, layout }) in targets.into_iter().enumerate() {
            let piece = match layout {
                Layout::Striped { chunk, columns } => {
                    let columns = columns.into_iter().map(|leg| self.place(leg, depth));
                    Stripes::new(range, chunk, columns.collect::<io::Result<_>>()?)
                }
                Layout::Mirror(mirror) => match self.leg_in_sync(device, number, range, &mirror, depth)? {
                    Ok(place) => Stripes::linear(range, place),
                    Err(reason) => return Ok(Err(reason)),
                },
                Layout::Multipath { paths } => match self.multipath(device, status, range, &paths)? {
                    Ok(store) => Stripes::linear(range, Place { store, offset: 0 }),
                    Err(reason) => return Ok(Err(reason)),
                },
            };
            let Some(piece) = piece else {
                return Ok(Err("its chunks do not make up whole rows".to_owned()));
            };
            let past_end = piece
                .columns()
                .find(|(store, range)| range.end() > self.graph.store(*store).size);
            if let Some((store, _)) = past_end {
                let label = &self.graph.store(store).label;
                return Ok(Err(format!(
                    "it reaches past the end of {label}, on which it lies"
                )));
            }
            pieces.push(piece);
        }
        Ok(Ok(pieces))
    }

    fn place(&mut self, leg: Leg, depth: usize) -> io::Result<Place> {
        Ok(Place {
            store: self.resolve_at(leg.device, depth + 1)?,
            offset: leg.offset,
        })
    }

    /// A leg of a mirror that has all the bytes and reaches a disk, if there is one.
    fn leg_in_sync(
        &mut self,
        device: DeviceNumber,
        target: usize,
        range: ByteRange,
        mirror: &Mirror,
        depth: usize,
    ) -> io::Result<Result<Place, String>> {
        let mapper = self.mapper()?;
        let status = mapper.target_status(device)?.targets;
        let line = status.get(target).map_or("", |line| &line.parameters);
        if let Err(why) = mirror.in_sync(line) {
            return Ok(Err(format!(
                "it is a mirror, and {why}: a leg is read directly only while all of them are in sync"
            )));
        }
        // A leg that failed, or is being written anew, shows in the status and in an event before it may hold other bytes.
        self.witness.remember(Fact::TargetStatus {
            mapper,
            device,
            status,
        });
        let mut legs = Vec::new();
        for leg in &mirror.legs {
            legs.push(self.place(*leg, depth)?);
        }
        let reach = Reach::of(self.graph);
        let direct = legs
            .iter()
            .find(|&&leg| reach.at(leg, range.len()) == (true, range.len()));
        let leg = direct.or(legs.first()).copied();
        Ok(leg.ok_or_else(|| "it is a mirror without legs".to_owned()))
    }
}

/// Pieces, in the smaller form where none of them is dealt out.
fn below(pieces: &[Stripes]) -> Below {
    let linear = pieces.iter().map(|piece| {
        let (below, run) = piece.locate(piece.range().start());
        (run == piece.range().len()).then_some(Segment {
            range: piece.range(),
            below,
        })
    });
    match linear.collect() {
        Some(segments) => Below::Segments(segments),
        None => Below::Striped(pieces.to_vec()),
    }
}
