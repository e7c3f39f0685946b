//! Bytes in and out of archives: blocking code over `Read` and `Write`. Every writer is finished by value; one that is
//! dropped unfinished leaves something that does not read as whole.

pub mod compress;
pub mod engine_tree;
pub mod gunzip;
pub mod gzip;
pub mod layout;
pub mod pack;
pub mod read;
pub mod seal;
pub mod tarfile;
pub mod tree;
pub mod unpack;
