//! A machine that misbehaves.
