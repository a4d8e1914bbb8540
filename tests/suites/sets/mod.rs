//! Sets: several volumes, one instant, one export each.

mod files;
mod images;
mod origins;
mod requests;
mod volumes;

use serde_json::Value;
use tests::program::nbd_export;

/// What the agent lists of one frozen image.
fn frozen_of(control: &str, export: &str) -> Value {
    let listing: Value =
        serde_json::from_str(&nbd_export(&["list", "--json", "--control", control])).unwrap();
    let volumes = listing["volumes"].as_array().unwrap().clone();
    volumes
        .iter()
        .flat_map(|volume| volume["frozen"].as_array().unwrap().clone())
        .find(|frozen| frozen["export"] == export)
        .unwrap_or_else(|| panic!("no {export} in {listing}"))
}
