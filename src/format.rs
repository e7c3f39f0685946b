//! Readers of the formats that other programs write and that we only pass on: PostgreSQL's plain dump,
//! Redis' RDB file, tar; and of its short scripts. Each reads a stream once, in bounded memory, and answers two questions: is it
//! whole, and what is in it. The one thing that could go wrong is to say "whole" about a stream that was
//! cut; every reader therefore asks for the format's own end mark and for nothing after it.

pub mod compose;
pub mod deb;
pub mod rdb;
pub mod roles;
pub mod sqldump;
pub mod sqltext;
pub mod tarwalk;
