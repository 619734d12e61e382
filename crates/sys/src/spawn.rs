//! Placeholder; the guest's engineer fills it.
