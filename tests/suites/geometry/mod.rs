//! Sizes and places at the edges: extents smaller than the LUN's blocks, the LUN's last block, a byte more than 1 GiB.

mod edges;
mod scattered;
