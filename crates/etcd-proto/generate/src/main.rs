//! Writes `../src/generated/*.rs` from `../proto`. See the crate's README.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let protos = package.join("proto");
    let mut compiler = protox::Compiler::new([&protos])?;
    compiler.include_source_info(true).include_imports(true);
    compiler.open_file("rpc.proto")?;
    tonic_prost_build::configure()
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        // INVARIANT: no derived Debug where a secret lives; src/lib.rs writes those by hand.
        .skip_debug([
            ".etcdserverpb.AuthenticateRequest",
            ".etcdserverpb.AuthenticateResponse",
        ])
        .out_dir(package.join("src/generated"))
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
