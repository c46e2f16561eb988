//! The process's own memory: giving back what a start needed once and never again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Makes all threads allocate from one arena. A daemon with a handful of threads that hardly ever allocate at the same time
/// pays nothing for it, and keeps one set of half-used pages instead of one per thread. Call it before there are threads.
pub fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes a number in the allocator and touches no memory of ours; both arguments are plain integers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns unused pages to the kernel: after the first full listing most of what the heap holds is free.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's locks, looks at free chunks only, and keeps every allocation where it is.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets go of the pages of this executable that its start has read: its relocations, half a megabyte that the loader went through
/// before anything else ran, and constants. What is read again comes back from the page cache.
pub fn forget_start() {
    for (start, end) in unwritten().unwrap_or_default() {
        // SAFETY: a mapping of a file in which no page is this process's own: nothing is lost, and no pointer into it changes
        // its meaning. The executable is never unmapped.
        unsafe {
            libc::madvise(
                std::ptr::without_provenance_mut(start),
                end - start,
                libc::MADV_DONTNEED,
            );
        }
    }
}

/// Mappings of this executable's constants: neither code nor anything that was ever written to.
fn unwritten() -> Option<Vec<(usize, usize)>> {
    let executable = std::fs::read_link("/proc/self/exe").ok()?;
    let mappings = std::fs::read_to_string("/proc/self/smaps").ok()?;
    Some(unwritten_of(executable.to_str()?, &mappings))
}

/// The same, of what `/proc/PID/smaps` shows (proc(5)).
fn unwritten_of(executable: &str, mappings: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut latest = None;
    for line in mappings.lines() {
        match line.split_once(": ") {
            Some(("Anonymous", own)) => {
                let is_whole = own.trim() == "0 kB";
                found.extend(latest.take().filter(|_| is_whole));
            }
            Some(_) => {}
            None => latest = constants(executable, line),
        }
    }
    found
}

/// The range of a mapping, if it is one of this executable that can only be read: `start-end r--p offset device inode path`.
fn constants(executable: &str, line: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(" r--p ")?;
    let path = rest.splitn(4, ' ').nth(3)?.trim_start();
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    (path == executable).then_some((number(start)?, number(end)?))
}

/// Bytes of a [`Brief`] heap. Pages nobody asked for cost nothing.
const BLOCK: usize = 512 << 10;

/// A heap for a process that lives for milliseconds: memory comes in order out of one block, and only what was handed out last
/// is taken back. Sparing the system calls and the search of a heap that has to last, it leaves what does not fit to the system's.
///
/// To be used as `#[global_allocator]`.
#[derive(Debug)]
pub struct Brief {
    block: UnsafeCell<Block>,
    used: AtomicUsize,
    /// Behind this nothing has ever been handed out: it is zero.
    touched: AtomicUsize,
}

/// Aligned so that offsets are as aligned as addresses, up to a page.
#[derive(Debug)]
#[repr(align(4096))]
struct Block(#[expect(dead_code, reason = "written and read through pointers only")] [u8; BLOCK]);

// SAFETY: the block is only written through pointers that `alloc` handed out, each range of it to one owner at a time: `used` is
// moved by compare-and-exchange, so no two callers get overlapping ranges.
unsafe impl Sync for Brief {}

impl Brief {
    /// An empty heap.
    #[expect(clippy::new_without_default, reason = "there is one, and it is a static")]
    pub const fn new() -> Brief {
        Brief {
            block: UnsafeCell::new(Block([0; BLOCK])),
            used: AtomicUsize::new(0),
            touched: AtomicUsize::new(0),
        }
    }

    fn start(&self) -> *mut u8 {
        self.block.get().cast()
    }

    /// Offset of a pointer into the block; `None` for the system's.
    fn offset(&self, pointer: *mut u8) -> Option<usize> {
        let offset = pointer.addr().checked_sub(self.start().addr())?;
        (offset < BLOCK).then_some(offset)
    }

    /// Moves the end of what is handed out, if it is where the caller believes. Returns up to where the block may not be zero.
    ///
    /// Acquire and release: who gets memory sees all that its owner before did, the mark in `touched` included.
    fn move_end(&self, from: usize, to: usize) -> Option<usize> {
        let moved = self
            .used
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
        moved.ok().map(|_| self.touched.fetch_max(to, Ordering::AcqRel))
    }

    /// A range of the block, and how many of its bytes are not zero for sure; `None` when it does not fit.
    fn take(&self, layout: Layout) -> Option<(*mut u8, usize)> {
        if layout.align() > align_of::<Block>() {
            return None;
        }
        loop {
            let used = self.used.load(Ordering::Relaxed);
            let begin = used.checked_next_multiple_of(layout.align())?;
            let end = begin.checked_add(layout.size()).filter(|end| *end <= BLOCK)?;
            if let Some(touched) = self.move_end(used, end) {
                // SAFETY: `begin <= end <= BLOCK`, so the pointer stays within the block or at its end.
                let pointer = unsafe { self.start().add(begin) };
                return Some((pointer, touched.saturating_sub(begin).min(layout.size())));
            }
        }
    }
}

// SAFETY: ranges come from the block, in bounds, aligned as asked and disjoint (see `Sync`), or from `System`, to which they go
// back; `offset` tells the two apart.
unsafe impl GlobalAlloc for Brief {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            Some((pointer, _)) => pointer,
            // SAFETY: as the caller of `alloc` promises.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            Some((pointer, dirty)) => {
                // SAFETY: `dirty` is at most the size of the range, which is the caller's from now on.
                unsafe { pointer.write_bytes(0, dirty) };
                pointer
            }
            // SAFETY: as the caller promises.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match self.offset(pointer) {
            Some(begin) => {
                self.move_end(begin + layout.size(), begin);
            }
            // SAFETY: what is not of the block is of the system's heap, with this layout.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(begin) = self.offset(pointer) else {
            // SAFETY: what is not of the block is of the system's heap, with this layout.
            return unsafe { System.realloc(pointer, layout, size) };
        };
        // The last one grows and shrinks where it is.
        if let Some(end) = begin.checked_add(size)
            && end <= BLOCK
            && self.move_end(begin + layout.size(), end).is_some()
        {
            return pointer;
        }
        if size <= layout.size() {
            return pointer;
        }
        // SAFETY: the caller promises that `size`, rounded up to the alignment, fits; both ranges hold `layout.size()` bytes and
        // are disjoint, as the old one is still handed out.
        unsafe {
            let grown = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !grown.is_null() {
                grown.copy_from_nonoverlapping(pointer, layout.size());
                self.dealloc(pointer, layout);
            }
            grown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_when_read_give_the_constants_of_the_executable_that_nobody_wrote_to() {
        let text = "\
564e7822b000-564e783d1000 r--p 00000000 fe:00 5793059                    /usr/bin/flanneld
Size:               1688 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
564e783d1000-564e787ae000 r-xp 001a5000 fe:00 5793059                    /usr/bin/flanneld
Anonymous:             0 kB
564e787ae000-564e787fe000 r--p 00581000 fe:00 5793059                    /usr/bin/flanneld
Anonymous:           264 kB
564e787fe000-564e78802000 rw-p 005d0000 fe:00 5793059                    /usr/bin/flanneld
Anonymous:             0 kB
7f0000000000-7f0000001000 r--p 00000000 fe:00 7                          /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000002000-7f0000003000 r--p 00000000 00:00 0
Anonymous:             0 kB
";
        assert_eq!(
            unwritten_of("/usr/bin/flanneld", text),
            [(0x564e_7822_b000, 0x564e_783d_1000)]
        );
        assert_eq!(unwritten_of("/usr/bin/other", text), []);
    }

    #[test]
    fn constants_when_forgotten_are_what_they_were() {
        let there = ["as", "before"];
        let text = there.join(" ");
        forget_start();
        assert_eq!(text, "as before");
        assert!(unwritten().is_some_and(|found| !found.is_empty()));
    }

    #[test]
    fn brief_when_used_hands_out_disjoint_aligned_memory_and_takes_back_the_last() {
        static HEAP: Brief = Brief::new();
        let heap = &HEAP;
        let layout = |size, align| Layout::from_size_align(size, align).unwrap();
        // SAFETY: every pointer is used within its layout and given back with it.
        unsafe {
            let a = heap.alloc(layout(3, 1));
            let b = heap.alloc(layout(16, 64));
            a.write_bytes(0xaa, 3);
            b.write_bytes(0xbb, 16);
            assert_eq!(b.addr() % 64, 0);
            assert!(b.addr() >= a.addr() + 3);
            // The last grows in place, another moves with what it holds.
            assert_eq!(heap.realloc(b, layout(16, 64), 4000), b);
            let moved = heap.realloc(a, layout(3, 1), 5);
            assert_ne!(moved, a);
            assert_eq!(std::slice::from_raw_parts(moved, 3), [0xaa; 3]);
            assert_eq!(std::slice::from_raw_parts(b, 16), [0xbb; 16]);
            // What is given back last is handed out next, zeroed when asked for.
            heap.dealloc(moved, layout(5, 1));
            let zeroed = heap.alloc_zeroed(layout(5, 1));
            assert_eq!(zeroed, moved);
            assert_eq!(std::slice::from_raw_parts(zeroed, 5), [0; 5]);
        }
    }

    #[test]
    fn brief_when_full_leaves_the_rest_to_the_system() {
        static HEAP: Brief = Brief::new();
        let heap = &HEAP;
        let half = Layout::from_size_align(BLOCK / 2 + 1, 8).unwrap();
        // SAFETY: as above.
        unsafe {
            let inside = heap.alloc(half);
            let outside = heap.alloc(half);
            assert!(heap.offset(inside).is_some());
            assert!(heap.offset(outside).is_none());
            outside.write_bytes(1, half.size());
            let outside = heap.realloc(outside, half, BLOCK);
            assert_eq!(outside.add(BLOCK / 2).read(), 1);
            heap.dealloc(outside, Layout::from_size_align(BLOCK, 8).unwrap());
            heap.dealloc(inside, half);
            assert_eq!(heap.alloc(half), inside);
        }
    }
}
