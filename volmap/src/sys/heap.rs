//! The memory of the C library.

/// Has all threads take their memory from one heap. By default glibc gives threads heaps of their own, and what was freed in one is of no
/// use to another, nor to the system (`mallopt(3)`, `M_ARENA_MAX`): memory that goes from thread to thread is held several times over.
/// For the start of a program; on other C libraries it does nothing.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers, and locks what it changes. That it may refuse costs memory only.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}
