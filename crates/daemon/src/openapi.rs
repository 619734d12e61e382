//! The OpenAPI document, made from the handlers themselves.

use utoipa::OpenApi;

use crate::{archive, attach, builds, exec, file, fs, images, leases, proxy, sandboxes, ssh, system, tcp};

/// Berth's HTTP API. Bodies of execs and archives are streams; see each route.
#[derive(OpenApi)]
#[openapi(
    info(title = "Berth", description = "Sandboxes for agent evaluation.", license(name = "Apache-2.0")),
    paths(
        system::version,
        system::doctor,
        system::node,
        system::shutdown,
        ssh::show,
        ssh::list_keys,
        ssh::add_key,
        ssh::delete_key,
        leases::create,
        leases::renew,
        leases::delete,
        sandboxes::create,
        sandboxes::list,
        sandboxes::show,
        sandboxes::delete,
        sandboxes::set_lease,
        sandboxes::set_ttl,
        builds::replay,
        exec::start,
        exec::list,
        exec::show,
        exec::kill,
        exec::output,
        exec::stdin,
        attach::attach,
        exec::signal,
        exec::resize,
        exec::quiesce,
        archive::put,
        archive::get,
        file::get,
        file::put,
        file::watch,
        fs::call,
        tcp::connect,
        proxy::pass,
        images::list,
        images::show,
        images::remove,
        images::pull,
        images::push,
        images::import,
        images::bootstrap,
        images::tag,
        images::prune,
        images::verify,
        images::export,
        builds::build,
    ),
    components(schemas(
        berth_types::exec::ExecEvent,
        berth_types::image::BuildFailure,
        berth_types::image::DockerfileFault,
        berth_types::image::BuildImage,
        berth_types::progress::Progress,
    ))
)]
struct Document;

/// The document as JSON, with a trailing newline, as it is checked in.
pub fn document() -> String {
    // The document is built from constants; it always serialises.
    let mut text = Document::openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}
