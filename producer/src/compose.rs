//! Everything in one process: broker, worker and front. The signature is the command line's; what
//! stands behind it is put together where all parts are known.
