//! `status`: what is live, and where the memory is.

use std::io::{self, Write};

use clap::Args;
use serde_json::{Map, Value, json};

use super::client::{Api, ClientArgs, model_path, parse_reference};
use super::output::{Failure, human_field, human_value, printable};
use super::table::Table;

#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Only this model
    #[arg(value_parser = parse_reference)]
    pub reference: Option<String>,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub(super) async fn status(args: &StatusArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let api = Api::new(&args.client.connection)?;
    let models = match &args.reference {
        Some(reference) => vec![api.get(&model_path(reference, "")).await?],
        None => match api.get("/models").await?["models"].take() {
            Value::Array(models) => models,
            _ => return Err(api.protocol("GET /models has no list of models")),
        },
    };
    let memory = memory(&api).await?;
    if args.client.json {
        writeln!(out, "{}", json!({ "models": models, "memory": memory.unwrap_or(Value::Null) }))?;
        return Ok(());
    }
    write_models(&models, out)?;
    match memory {
        Some(memory) => write_tree("memory", &memory, out)?,
        None => writeln!(out, "memory: not shown (it needs the admin token; --token-file)")?,
    }
    Ok(())
}

/// Memory is an admin route: without a token the rest of the status is still worth showing.
async fn memory(api: &Api) -> Result<Option<Value>, Failure> {
    match api.get("/admin/memory").await {
        Ok(memory) => Ok(Some(memory)),
        Err(Failure::Refused(refusal)) if matches!(refusal.status, 401 | 403 | 404) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn write_models(models: &[Value], out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new(["model", "task", "live", "candidate", "previous", "versions"]);
    for model in models {
        let versions: Vec<&str> =
            model["versions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        table.row([
            human_value(&model["name"]),
            human_value(&model["task"]),
            role(&model["live"]),
            role(&model["candidate"]),
            role(&model["previous"]),
            versions.join(" "),
        ]);
    }
    if table.is_empty() { writeln!(out, "no models") } else { table.write(out) }
}

/// `v2 (observing)`: the version, and its phase where it says more than its column.
fn role(value: &Value) -> String {
    match (value["version"].as_str(), value["phase"].as_str()) {
        (None, _) => "-".to_owned(),
        (Some(version), Some(phase)) if !matches!(phase, "live" | "serving" | "settled" | "previous") => {
            format!("{version} ({phase})")
        }
        (Some(version), _) => version.to_owned(),
    }
}

/// Any JSON for people: scalars a line each, lists of objects as tables.
pub(super) fn write_tree(title: &str, value: &Value, out: &mut dyn Write) -> io::Result<()> {
    let Value::Object(fields) = value else {
        return writeln!(out, "{}: {}", printable(title), human_field(title, value));
    };
    let mut scalars = Table::new([title, ""]);
    for (name, field) in fields.iter().filter(|(_, field)| !field.is_object() && !is_rows(field)) {
        scalars.row([format!("  {name}"), human_field(name, field)]);
    }
    if !scalars.is_empty() {
        scalars.write(out)?;
    }
    for (name, field) in fields {
        match field {
            Value::Object(_) => write_tree(&format!("{title} {name}"), field, out)?,
            Value::Array(rows) if is_rows(field) => write_rows(name, rows, out)?,
            _ => {}
        }
    }
    Ok(())
}

fn is_rows(value: &Value) -> bool {
    value.as_array().is_some_and(|items| !items.is_empty() && items.iter().all(Value::is_object))
}

fn write_rows(title: &str, rows: &[Value], out: &mut dyn Write) -> io::Result<()> {
    let objects: Vec<&Map<String, Value>> = rows.iter().filter_map(Value::as_object).collect();
    let mut columns: Vec<&str> = Vec::new();
    for name in objects.iter().flat_map(|object| object.keys()) {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    writeln!(out, "{}", printable(title))?;
    let mut table = Table::new(columns.iter().copied()).indented(2);
    for object in objects {
        table.row(columns.iter().map(|name| object.get(*name).map_or_else(String::new, |v| human_field(name, v))));
    }
    table.write(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_any_shape_is_shown_in_its_units() {
        let memory = json!({
            "rss_bytes": 104857600, "allocator": "jemalloc",
            "process": {"resident": 2048},
            "devices": [{"device": "cpu", "budget": 1048576, "reserved": 0}, {"device": "cuda:0", "measured": 7}]
        });
        let mut out = Vec::new();
        write_tree("memory", &memory, &mut out).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap(), @r"
        memory
          rss_bytes  100.0 MiB
          allocator  jemalloc
        memory process
          resident      2.00 KiB
        devices
          device    budget  reserved  measured
          cpu     1.00 MiB       0 B
          cuda:0                           7 B
        ");
    }
}
