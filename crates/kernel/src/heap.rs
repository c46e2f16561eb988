//! The process's own memory: giving back what a start needed once and never again.

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
