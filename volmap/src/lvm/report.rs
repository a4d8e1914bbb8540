//! LVM's reports (`--reportformat json`).

use serde_json::{Map, Value};

/// One line of a report.
#[derive(Debug)]
pub(super) struct Row(Map<String, Value>);

impl Row {
    /// The text of a field; empty where it has no value.
    pub(super) fn text(&self, field: &str) -> Result<&str, &'static str> {
        match self.0.get(field) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err("a field is no text"),
            None => Err("a field that was asked for is missing"),
        }
    }

    /// A field that is a number.
    pub(super) fn number(&self, field: &str) -> Result<i64, &'static str> {
        self.text(field)?.parse().map_err(|_| "a number cannot be read")
    }

    /// A field that is a list with commas.
    pub(super) fn list(&self, field: &str) -> Result<Vec<String>, &'static str> {
        let words = self.text(field)?.split(',').filter(|word| !word.is_empty());
        Ok(words.map(str::to_owned).collect())
    }
}

/// The rows of the tables called `table` in a report: `{"report": [{"TABLE": [{…}, …]}, …]}`.
pub(super) fn rows(json: &[u8], table: &str) -> Result<Vec<Row>, &'static str> {
    let report: Value = serde_json::from_slice(json).map_err(|_| "it is no JSON")?;
    let parts = report.get("report").and_then(Value::as_array);
    let mut rows = Vec::new();
    for part in parts.ok_or("it holds no report")? {
        let Some(found) = part.get(table).and_then(Value::as_array) else {
            return Err("the report holds another table");
        };
        for row in found {
            rows.push(Row(row.as_object().ok_or("a row is no object")?.clone()));
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_and_anything_else_is_refused() {
        let json = br#"{ "report": [ { "lv": [ {"lv_name":"a", "n":"-1", "tags":"x,y"}, {"lv_name":"b"} ] } ], "log": [] }"#;
        let found = rows(json, "lv").unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].text("lv_name"), Ok("a"));
        assert_eq!(found[0].number("n"), Ok(-1));
        assert_eq!(found[0].list("tags"), Ok(vec!["x".to_owned(), "y".to_owned()]));
        assert!(found[1].text("tags").is_err() && found[0].number("lv_name").is_err());
        assert!(rows(br#"{"report":[{"lv":[]}]}"#, "lv").unwrap().is_empty());
        for bad in [
            "",
            "{}",
            r#"{"report":1}"#,
            r#"{"report":[{"vg":[]}]}"#,
            r#"{"report":[{"lv":[1]}]}"#,
        ] {
            assert!(rows(bad.as_bytes(), "lv").is_err(), "{bad}");
        }
    }
}
