//! Completions for bash, zsh and fish.

use super::super::table::{Kind, TABLE};
use super::{dashed, first_sentence, is_file, words};

/// For bash: `/usr/share/bash-completion/completions/flanneld`.
pub fn bash() -> String {
    let flags: Vec<String> = TABLE
        .iter()
        .map(|f| {
            if matches!(f.kind, Kind::Bool(_)) {
                dashed(f)
            } else {
                format!("{}=", dashed(f))
            }
        })
        .collect();
    let mut cases = String::new();
    for flag in TABLE {
        let candidates = match words(flag) {
            Some(words) => format!("-W \"{}\"", words.join(" ")),
            None if is_file(flag) => "-f".to_owned(),
            None if flag.name == "iface" => "-W \"$(cd /sys/class/net && echo *)\"".to_owned(),
            None => continue,
        };
        // A boolean takes no word after a blank: completing one there would end the flags.
        let blank = if matches!(flag.kind, Kind::Bool(_)) {
            String::new()
        } else {
            format!("--{0}|-{0}|", flag.name)
        };
        cases.push_str(&format!(
            "        {blank}--{0}=|-{0}=) COMPREPLY=($(compgen {candidates} -- \"$value\")) ;;\n",
            flag.name
        ));
    }
    format!(
        "# bash completion for flanneld\n\
         _flanneld() {{\n\
         \x20   local current=\"${{COMP_WORDS[COMP_CWORD]}}\" previous=\"${{COMP_WORDS[COMP_CWORD-1]}}\" name value\n\
         \x20   COMPREPLY=()\n\
         \x20   if [[ $current == = ]]; then name=\"$previous=\" value=\n\
         \x20   elif [[ $previous == = ]]; then name=\"${{COMP_WORDS[COMP_CWORD-2]}}=\" value=$current\n\
         \x20   elif [[ $previous == -* && $current != -* ]]; then name=$previous value=$current\n\
         \x20   fi\n\
         \x20   case \"$name\" in\n{cases}\
         \x20       *) COMPREPLY=($(compgen -W \"{}\" -- \"$current\"))\n\
         \x20          [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace ;;\n\
         \x20   esac\n\
         }}\n\
         complete -F _flanneld flanneld\n",
        flags.join(" ")
    )
}

/// For zsh: `_flanneld` on the `fpath`.
pub fn zsh() -> String {
    let mut text = String::from("#compdef flanneld\n_arguments \\\n");
    for flag in TABLE {
        let meaning = first_sentence(flag.meaning)
            .replace('\\', "\\\\")
            .replace('\'', "'\\''")
            .replace('[', "\\[")
            .replace(']', "\\]")
            .replace(':', "\\:");
        let repeat = if matches!(flag.kind, Kind::List(_)) {
            "*"
        } else {
            ""
        };
        let value = match words(flag) {
            Some(words) if matches!(flag.kind, Kind::Bool(_)) => {
                format!("=-[{meaning}]::value:({})", words.join(" "))
            }
            Some(words) => format!("=[{meaning}]:value:({})", words.join(" ")),
            None if is_file(flag) => format!("=[{meaning}]:file:_files"),
            None if flag.name == "iface" => format!("=[{meaning}]:interface:_net_interfaces"),
            None => format!("=[{meaning}]:value: "),
        };
        text.push_str(&format!("    '{repeat}{}{value}' \\\n", dashed(flag)));
    }
    text.push_str("    '(- *)--help[Print all flags]'\n");
    text
}

/// For fish: `flanneld.fish` among its completions.
pub fn fish() -> String {
    let mut text = String::from("# fish completion for flanneld\ncomplete -c flanneld -f\n");
    for flag in TABLE {
        let meaning = first_sentence(flag.meaning)
            .replace('\\', "\\\\")
            .replace('\'', "\\'");
        let name = if flag.name.len() == 1 {
            format!("-s {}", flag.name)
        } else {
            format!("-l {}", flag.name)
        };
        let value = match words(flag) {
            Some(_) if matches!(flag.kind, Kind::Bool(_)) => String::new(),
            Some(words) => format!(" -x -a '{}'", words.join(" ")),
            None if is_file(flag) => " -r -F".to_owned(),
            None if flag.name == "iface" => " -x -a '(command ls /sys/class/net)'".to_owned(),
            None => " -x".to_owned(),
        };
        text.push_str(&format!("complete -c flanneld {name}{value} -d '{meaning}'\n"));
    }
    text
}
