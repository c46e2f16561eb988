//! `docs/flags.md`.

use super::super::table::{Kind, Section};
use super::{dashed, of, unbuilt};

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// The page in Markdown.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Flags of flanneld\n\n\
         Made from the table in `crates/flanneld/src/flags/table.rs`; a test says when this page is not current.\n\n\
         `-name` and `--name` are the same. A value follows after `=` or as the next argument, but that of a boolean only \
         after `=`\n(`--ip-masq=false`; `--ip-masq false` sets it and ends the flags). Reading stops at the first argument \
         that is no flag; a\nwarning names what was left over. Numbers may be written as in Go: `0x10`, `0o17`, `0b1`, \
         `010` (8), `1_000`.\n\n\
         Every flag but `--version` may be given in the environment: `FLANNELD_` and the name in capitals, `_` for `-`. The\n\
         command line wins, an empty variable is none, and a value that cannot be used is logged and the default kept.\n",
    );
    for section in Section::ALL {
        page.push_str(&format!(
            "\n## {}\n\n| flag | value | default | meaning |\n|---|---|---|---|\n",
            section.title()
        ));
        for flag in of(section) {
            let value = match flag.kind {
                Kind::Bool(_) => "true, false".to_owned(),
                Kind::List(_) => "text, repeatable".to_owned(),
                _ => cell(&flag.kind.placeholder()),
            };
            let default = if flag.default.is_empty() {
                String::new()
            } else {
                format!("`{}`", flag.default)
            };
            let meaning = cell(&format!("{}{}", flag.meaning, unbuilt(flag)));
            page.push_str(&format!(
                "| `{}` | {value} | {default} | {meaning} |\n",
                dashed(flag)
            ));
        }
    }
    page.push_str(
        "\n## Exit status\n\n\
         | code | when |\n|---|---|\n\
         | 0 | stopped by a signal; `--help`; `--version` |\n\
         | 1 | the network could not be set up or kept |\n\
         | 2 | the command line cannot be used |\n\n\
         ## Paths that follow `--subnet-file`\n\n\
         Two daemons on one host need two subnet files; what else they write follows from it.\n\n\
         | subnet file | status socket | state |\n|---|---|---|\n\
         | `/run/flannel/subnet.env` (default) | `/run/flannel/flanneld.sock` | `/var/lib/flannel/` |\n\
         | any other `FILE` | `FILE.sock` | `/var/lib/flannel/<first 16 hex digits of the SHA-256 of FILE's absolute path>/` |\n",
    );
    page
}
