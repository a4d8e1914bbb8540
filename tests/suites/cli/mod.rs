//! What both programs promise of their command lines.

mod backup;
mod endings;
mod generate;
mod promises;
mod steering;
