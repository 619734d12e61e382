//! How the C library's allocator keeps memory.

/// Pieces of a bulk transfer are a quarter of a megabyte each. Left to itself the allocator gets them from the kernel and
/// gives them back one by one, and a page fault for every 4 KiB of what passes costs more than copying it.
const LARGE: libc::c_int = 2 << 20;
/// So much at the end of a heap is kept for the next one.
const KEPT: libc::c_int = 4 << 20;
/// Heaps, each of which keeps its own: by default there are eight for each processor.
const ARENAS: libc::c_int = 2;

/// Has memory of up to 2 MiB used again rather than given back, in few heaps. For the start of a process.
///
/// mallopt(3). Elsewhere than with the GNU C library it does nothing.
pub fn reuse() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, KEPT), (libc::M_ARENA_MAX, ARENAS)]
    {
        // SAFETY: it takes two numbers; parameters and values are ones that it documents. What it refuses it leaves as it
        // was, which costs speed alone.
        unsafe { libc::mallopt(parameter, value) };
    }
}
