#![allow(clippy::all, clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]
use clap::Parser;
#[derive(Parser)]
struct Cli { #[command(flatten)] settings: conclave::config::Settings }
#[tokio::main]
async fn main() {
    let config = match conclave::config::Config::load(Cli::parse().settings) { Ok(c)=>c, Err(e)=>{eprintln!("{e}"); std::process::exit(1)} };
    conclave::telemetry::start(config.log_format);
    let stop = async { tokio::signal::ctrl_c().await.unwrap() };
    if let Err(e) = conclave::node::run(config, stop).await { eprintln!("error: {e}"); std::process::exit(1) }
}
