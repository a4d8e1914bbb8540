//! The memory of the C library.

/// Bytes of memory that the system gets back as soon as it is freed.
const OF_ITS_OWN: nix::libc::c_int = 4 << 20;

/// Free bytes at the end of the heap that are kept for the next to ask.
const KEPT: nix::libc::c_int = 16 << 20;

/// Has all threads take their memory from one heap, and large parts of it from the system itself (`mallopt(3)`). By default glibc gives
/// threads heaps of their own, and what was freed in one is of no use to another, nor to the system: memory that goes from thread
/// to thread is held several times over. And what is large it takes from the heap, too, once memory of that size was freed, where small ones
/// between keep it from ever going back. For the start of a program; on other C libraries it does nothing.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers, and locks what it changes. That it may refuse costs memory only.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, OF_ITS_OWN);
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Bytes of a huge page of x86-64, and of arm64 with pages of 4 KiB. Where it is another size, only the first huge page is lost.
pub const HUGE_PAGE: usize = 2 << 20;

/// Asks for huge pages for the memory of these bytes that was not used yet (`madvise(2)`, `MADV_HUGEPAGE`). They are had only if the system
/// has some to give; nothing but speed depends on it.
pub fn prefer_huge_pages(bytes: &mut [u8]) {
    let start = bytes.as_ptr().align_offset(HUGE_PAGE);
    let Some(inside) = bytes.get_mut(start..) else {
        return;
    };
    // SAFETY: the advice changes no contents, and the memory is borrowed. That it may be refused costs speed only.
    unsafe {
        nix::libc::madvise(inside.as_mut_ptr().cast(), inside.len(), nix::libc::MADV_HUGEPAGE);
    }
}
