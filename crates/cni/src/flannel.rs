//! The plugin `flannel`.
pub mod netconf;
pub mod state;
pub mod subnet_env;
