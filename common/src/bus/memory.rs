//! Parts of one process.
