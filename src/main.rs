//! The program: arguments, then one of the mains.

fn main() {}
