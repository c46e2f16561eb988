//! An error with its causes, for people.

use std::error::Error;

/// The error and its causes, outermost first, each said once: many of ours say their cause themselves.
pub fn in_full(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Layer {
        #[error("no room")]
        Bottom,
        #[error("writing: {0}")]
        Says(#[source] Box<Layer>),
        #[error("saving")]
        Silent(#[source] Box<Layer>),
    }

    #[test]
    fn in_full_when_a_cause_is_said_by_its_effect_then_once_else_after_it() {
        let says = |inner| Layer::Says(Box::new(inner));
        let silent = |inner| Layer::Silent(Box::new(inner));
        for (error, text) in [
            (Layer::Bottom, "no room"),
            (says(Layer::Bottom), "writing: no room"),
            (silent(Layer::Bottom), "saving: no room"),
            (silent(says(Layer::Bottom)), "saving: writing: no room"),
            (says(silent(Layer::Bottom)), "writing: saving: no room"),
        ] {
            assert_eq!(in_full(&error), text, "{error:?}");
        }
    }
}
