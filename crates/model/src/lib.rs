//! The mathematics of OpenFlamingo, generic over the backend: no files, no strings, no threads.
