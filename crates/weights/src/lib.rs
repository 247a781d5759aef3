//! Names and bytes of checkpoints: readers, name tables, conversion and its report. Knows no tensor library.
