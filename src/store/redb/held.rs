//! A backend that keeps writes in memory until the engine has opened the database.
//!
//! Opening repairs, and repairing writes. While they are held, a file that the engine refuses in
//! the end stays as it was, byte for byte; and a disk that takes no writes leaves a database that
//! can at least be read.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use super::lock;

const BLOCK: u64 = 4096;

#[derive(Clone, Debug)]
pub(super) struct Held(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    backend: Box<dyn StorageBackend>,
    is_held: AtomicBool,
    writes: Mutex<Writes>,
}

#[derive(Debug)]
struct Writes {
    /// What was written, as whole blocks by number.
    blocks: BTreeMap<u64, Vec<u8>>,
    len: u64,
    /// Up to where the backend has what was not written.
    base: u64,
}

impl Held {
    pub(super) fn new(backend: Box<dyn StorageBackend>) -> io::Result<Self> {
        let len = backend.len()?;
        let writes = Mutex::new(Writes { blocks: BTreeMap::new(), len, base: len });
        Ok(Self(Arc::new(Inner { backend, is_held: AtomicBool::new(true), writes })))
    }

    /// Writes what was held and lets through what comes. May be tried again when it fails.
    ///
    /// The first block says what counts of the others, so it goes last.
    pub(super) fn release(&self) -> io::Result<()> {
        let (backend, mut writes) = (&self.0.backend, lock(&self.0.writes));
        if !self.0.is_held.load(Ordering::Acquire) {
            return Ok(());
        }
        let len = backend.len()?;
        if writes.base < len {
            backend.set_len(writes.base)?;
        }
        if backend.len()? != writes.len {
            backend.set_len(writes.len)?;
        }
        let write = |number: u64, block: &[u8]| {
            let start = number * BLOCK;
            let size = usize::try_from(writes.len.saturating_sub(start)).unwrap_or(usize::MAX);
            backend.write(start, &block[..block.len().min(size)])
        };
        let mut has_more = backend.len()? != len;
        for (number, block) in writes.blocks.range(1..) {
            write(*number, block)?;
            has_more = true;
        }
        if has_more {
            backend.sync_data()?;
        }
        if let Some(first) = writes.blocks.get(&0) {
            write(0, first)?;
            backend.sync_data()?;
        }
        writes.blocks.clear();
        self.0.is_held.store(false, Ordering::Release);
        Ok(())
    }

    /// The writes that are held; nothing once they are let through.
    fn held(&self) -> Option<std::sync::MutexGuard<'_, Writes>> {
        let is_held = || self.0.is_held.load(Ordering::Acquire);
        is_held().then(|| lock(&self.0.writes)).filter(|_| is_held())
    }
}

impl Writes {
    fn read(&self, backend: &dyn StorageBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        if end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let below = usize::try_from(self.base.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (there, beyond) = out.split_at_mut(below.min(out.len()));
        if !there.is_empty() {
            backend.read(offset, there)?;
        }
        beyond.fill(0);
        for (number, block) in self.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)) {
            let start = number * BLOCK;
            let (from, to) = (offset.max(start), end.min(start + BLOCK));
            out[index(from - offset)..index(to - offset)]
                .copy_from_slice(&block[index(from - start)..index(to - start)]);
        }
        Ok(())
    }

    fn write(&mut self, backend: &dyn StorageBackend, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        self.len = self.len.max(end);
        for number in offset / BLOCK..end.div_ceil(BLOCK) {
            let start = number * BLOCK;
            if !self.blocks.contains_key(&number) {
                let mut block = vec![0; index(BLOCK)];
                let there = index(self.len.min(start + BLOCK) - start);
                self.read(backend, start, &mut block[..there])?;
                self.blocks.insert(number, block);
            }
            let (from, to) = (offset.max(start), end.min(start + BLOCK));
            if let Some(block) = self.blocks.get_mut(&number) {
                block[index(from - start)..index(to - start)]
                    .copy_from_slice(&data[index(from - offset)..index(to - offset)]);
            }
        }
        Ok(())
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.base = self.base.min(len);
            self.blocks.retain(|number, _| number * BLOCK < len);
            if let Some(block) = self.blocks.get_mut(&(len / BLOCK)) {
                block[index(len % BLOCK)..].fill(0);
            }
        }
        self.len = len;
    }
}

impl StorageBackend for Held {
    fn len(&self) -> io::Result<u64> {
        self.held().map_or_else(|| self.0.backend.len(), |writes| Ok(writes.len))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self.held() {
            Some(writes) => writes.read(&*self.0.backend, offset, out),
            None => self.0.backend.read(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.held() {
            Some(mut writes) => {
                writes.set_len(len);
                Ok(())
            }
            None => self.0.backend.set_len(len),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.held() {
            Some(_) => Ok(()),
            None => self.0.backend.sync_data(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.held() {
            Some(mut writes) => writes.write(&*self.0.backend, offset, data),
            None => self.0.backend.write(offset, data),
        }
    }

    fn close(&self) -> io::Result<()> {
        self.0.backend.close()
    }
}

/// Offsets within one block or one buffer.
fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::*;

    #[test]
    fn what_is_held_reads_as_written_and_arrives_when_let_through() {
        let below = Arc::new(InMemoryBackend::new());
        below.set_len(10_000).unwrap();
        below.write(0, &[1; 10_000]).unwrap();
        let held = Held::new(Box::new(Shared(below.clone()))).unwrap();
        held.write(4000, &[2; 5000]).unwrap();
        held.set_len(8500).unwrap();
        held.set_len(20_000).unwrap();
        held.write(19_990, &[3; 10]).unwrap();
        let expected = [vec![1; 4000], vec![2; 4500], vec![0; 11_490], vec![3; 10]].concat();
        let content = |backend: &dyn StorageBackend| {
            let mut out = vec![9; usize::try_from(backend.len().unwrap()).unwrap()];
            backend.read(0, &mut out).unwrap();
            out
        };
        assert_eq!(content(&held), expected);
        assert_eq!(content(&*below), vec![1; 10_000]);
        held.release().unwrap();
        assert_eq!(content(&*below), expected);
        held.write(0, &[4; 10]).unwrap();
        assert_eq!(content(&*below)[..10], [4; 10]);
    }

    #[derive(Debug)]
    struct Shared(Arc<InMemoryBackend>);

    impl StorageBackend for Shared {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)
        }
    }
}
