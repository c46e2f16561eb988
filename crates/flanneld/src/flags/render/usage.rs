//! What `--help` prints.

use super::super::table::{Kind, Section};
use super::{dashed, of, unbuilt};

const WIDTH: usize = 100;
const INDENT: usize = 8;

/// The usage text for a program called `program`; its first line is that of the reference.
pub fn usage(program: &str) -> String {
    let mut text = format!("Usage: {program} [OPTION]...\n");
    for section in Section::ALL {
        text.push_str(&format!("\n{}:\n", section.title()));
        for flag in of(section) {
            let placeholder = flag.kind.placeholder();
            let blank = if placeholder.is_empty() { "" } else { " " };
            text.push_str(&format!("  {}{blank}{placeholder}\n", dashed(flag)));
            let mut meaning = format!("{}{}", flag.meaning, unbuilt(flag));
            match flag.kind {
                Kind::List(_) => meaning.push_str(" (repeatable)"),
                _ if flag.default.is_empty() => {}
                _ => meaning.push_str(&format!(" (default {})", flag.default)),
            }
            wrap(&meaning, &mut text);
        }
    }
    text.push_str(
        "\n-name and --name are the same; a value follows after = or as the next argument, but that of a boolean only \
         after =.\nEvery flag but --version can be given in the environment: FLANNELD_ETCD_PREFIX for --etcd-prefix.\n",
    );
    text
}

fn wrap(meaning: &str, text: &mut String) {
    let mut column = 0;
    for word in meaning.split(' ') {
        if column == 0 || column + 1 + word.len() > WIDTH {
            if column > 0 {
                text.push('\n');
            }
            text.push_str(&" ".repeat(INDENT));
            column = INDENT;
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += word.len();
    }
    text.push('\n');
}
