//! A registry on a free loopback port: `serve DIR`. Prints its URL when it is ready, and serves until killed.

use std::error::Error;
use std::io::Write as _;

use embedded::ServeOptions;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os().nth(1).ok_or("usage: serve DIR")?;
    let listen = vec!["127.0.0.1:0".to_owned()];
    let options = ServeOptions {
        listen,
        data_dir: dir.into(),
        tls: None,
        insecure: false,
    };
    let bound = embedded::serve(options, std::future::pending()).await?;
    if let Some(lost) = bound.lost() {
        writeln!(
            std::io::stderr().lock(),
            "lost: {} of {}",
            lost.kept,
            lost.acknowledged
        )?;
    }
    writeln!(std::io::stdout().lock(), "{}", bound.urls().join(","))?;
    Ok(bound.finished().await?)
}
