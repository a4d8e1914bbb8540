//! What was read last of images, decoded and checked: bounded in bytes, however many images share it, and whatever they hold.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::error::Result;
use crate::image::OpenGroup;

/// Bytes that are kept: what sixteen readers with a few MiB each in flight are in the midst of.
const BYTES_MAX: usize = 128 << 20;

/// Things that can be made side by side. Two readers of one frame wait for each other, so that it is decoded once.
const MAKERS: u64 = 64;

/// What something is of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Part {
    /// A group, by its number.
    Group(u64),
    /// A frame, by its first byte of the volume.
    Frame(u64),
}

type Key = (u64, Part);

#[derive(Clone)]
enum Value {
    Group(Arc<OpenGroup>),
    Frame(Bytes),
}

impl Value {
    fn memory(&self) -> usize {
        match self {
            Self::Group(group) => group.memory(),
            Self::Frame(bytes) => bytes.len(),
        }
    }
}

/// The cache of one chain or of several.
pub(crate) struct Cache {
    kept: Mutex<Kept>,
    makers: Vec<Mutex<()>>,
    images: AtomicU64,
}

#[derive(Default)]
struct Kept {
    values: HashMap<Key, (u64, Value)>,
    /// By when they were used last.
    ages: BTreeMap<u64, Key>,
    uses: u64,
    bytes: usize,
    bytes_max: usize,
}

impl Kept {
    fn get(&mut self, key: Key) -> Option<Value> {
        let (age, value) = self.values.get_mut(&key)?;
        self.ages.remove(age);
        self.uses += 1;
        *age = self.uses;
        self.ages.insert(self.uses, key);
        Some(value.clone())
    }

    fn put(&mut self, key: Key, value: Value) {
        self.uses += 1;
        self.bytes += value.memory();
        self.ages.insert(self.uses, key);
        if let Some((age, old)) = self.values.insert(key, (self.uses, value)) {
            self.ages.remove(&age);
            self.bytes -= old.memory();
        }
        while self.bytes > self.bytes_max
            && let Some((_, oldest)) = self.ages.pop_first()
            && let Some((_, value)) = self.values.remove(&oldest)
        {
            self.bytes -= value.memory();
        }
    }
}

impl Cache {
    /// An empty one.
    pub(crate) fn new() -> Arc<Self> {
        Self::of(BYTES_MAX)
    }

    fn of(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            kept: Mutex::new(Kept {
                bytes_max,
                ..Kept::default()
            }),
            makers: (0..MAKERS).map(|_| Mutex::default()).collect(),
            images: AtomicU64::new(0),
        })
    }

    /// A number for another image.
    pub(super) fn number_image(&self) -> u64 {
        self.images.fetch_add(1, Ordering::Relaxed)
    }

    /// A group of an image, which `make` opens if it is not there.
    pub(super) fn group(
        &self,
        image: u64,
        number: u64,
        make: impl FnOnce() -> Result<Arc<OpenGroup>>,
    ) -> Result<Arc<OpenGroup>> {
        let made = self.get_or((image, Part::Group(number)), || make().map(Value::Group))?;
        match made {
            Value::Group(group) => Ok(group),
            Value::Frame(_) => unreachable!("frames have other keys"),
        }
    }

    /// The bytes of a frame of an image, which `make` decodes if they are not there.
    pub(super) fn frame(
        &self,
        image: u64,
        start: u64,
        make: impl FnOnce() -> Result<Bytes>,
    ) -> Result<Bytes> {
        let made = self.get_or((image, Part::Frame(start)), || make().map(Value::Frame))?;
        match made {
            Value::Frame(bytes) => Ok(bytes),
            Value::Group(_) => unreachable!("groups have other keys"),
        }
    }

    fn get_or(&self, key: Key, make: impl FnOnce() -> Result<Value>) -> Result<Value> {
        if let Some(value) = lock(&self.kept).get(key) {
            return Ok(value);
        }
        let (Part::Group(number) | Part::Frame(number)) = key.1;
        // Frames begin on multiples of 64 KiB, most of them of 1 MiB.
        let maker = (key.0 ^ number ^ (number >> 20)) % MAKERS;
        let _one_at_a_time = lock(&self.makers[usize::try_from(maker).unwrap_or(0)]);
        if let Some(value) = lock(&self.kept).get(key) {
            return Ok(value);
        }
        let value = make()?;
        lock(&self.kept).put(key, value.clone());
        Ok(value)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    fn bytes(length: usize) -> Bytes {
        vec![0; length].into()
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let cache = Cache::of(100);
        let is_kept = |image, start| {
            let kept = cache.frame(image, start, || Err(Error::new(ErrorKind::Io, "it is gone")));
            kept.is_ok()
        };
        let put = |image, start, length| drop(cache.frame(image, start, || Ok(bytes(length))).unwrap());
        put(0, 0, 40);
        put(1, 0, 40);
        assert!(is_kept(0, 0));
        put(0, 1, 40);
        assert_eq!((is_kept(0, 0), is_kept(1, 0), is_kept(0, 1)), (true, false, true));
        // Never more than it may be, even by one thing alone.
        put(2, 0, 101);
        assert!(!is_kept(2, 0) && !is_kept(0, 0));
        assert_eq!(lock(&cache.kept).bytes, 0);
        assert!(lock(&cache.kept).ages.is_empty());
    }

    #[test]
    fn a_frame_that_many_want_is_decoded_once() {
        let cache = Cache::of(100);
        let decoded = AtomicU64::new(0);
        std::thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    let made = cache.frame(0, 0, || {
                        decoded.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        Ok(bytes(10))
                    });
                    made.unwrap()
                });
            }
        });
        assert_eq!(decoded.into_inner(), 1);
    }
}
