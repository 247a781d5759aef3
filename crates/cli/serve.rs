//! `flamingo serve`.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use anyhow::Context;
use flamingo_serve::{DEFAULT_TEMPLATE, Options, Remote, Server, Template, document, signals};

use crate::args::ServeArgs;
use crate::generate::open;

pub fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    if args.print_chat_template {
        return Ok(stdout.write_all(DEFAULT_TEMPLATE.as_bytes())?);
    }
    if args.print_openapi {
        return Ok(writeln!(stdout, "{}", document())?);
    }
    let options = options(args)?;
    let server = Server::bind(&args.host, args.port)?;
    let model = open(&args.model)?;
    // Where it is known only now: port 0 is any.
    writeln!(stdout, "http://{}", server.address())?;
    stdout.flush()?;
    drop(stdout);
    Ok(server.run(model, options, signals)?)
}

fn options(args: &ServeArgs) -> anyhow::Result<Options> {
    let folder = args.model.zoo.find(&args.model.model)?;
    let own = folder.join("chat_template.jinja");
    let template = match &args.chat_template {
        Some(file) => std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
        None => match std::fs::read_to_string(&own) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => DEFAULT_TEMPLATE.to_string(),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", own.display())),
        },
    };
    let name = match &args.name {
        Some(name) => name.clone(),
        None => folder.file_name().map_or_else(|| args.model.model.clone(), |name| name.to_string_lossy().into_owned()),
    };
    let remote = (!args.allow_host.is_empty()).then(|| Remote {
        hosts: args.allow_host.clone(),
        allow_private: args.allow_private_addresses,
        timeout: Duration::from_secs(args.fetch_timeout as u64),
    });
    Ok(Options {
        name,
        template: Template::new(&template)?,
        max_batch: args.max_batch,
        max_queue: args.max_queue,
        max_context: args.max_context,
        max_images: args.max_images,
        max_pixels: args.max_megapixels.saturating_mul(1_000_000),
        max_body: args.max_body << 20,
        // As many of the largest as a small machine has memory for.
        max_bodies: 4 * (args.max_body << 20),
        max_connections: args.max_connections,
        cache_bytes: args.cache.saturating_mul(1 << 20),
        timeout: Duration::from_secs(args.timeout as u64),
        read_timeout: Duration::from_secs(args.read_timeout as u64),
        remote,
    })
}
