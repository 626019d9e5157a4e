//! nginx as the yardstick: what it costs to merely pass the same streams through.
//!
//! Two workers (the machine has two cores), HTTP/1.1 and kept connections to the provider, no buffering and no access
//! log: the least that nginx can be made to do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

pub(crate) fn write(folder: &Path, listen: SocketAddr, upstream: SocketAddr) -> Result<PathBuf> {
    let file = folder.join("nginx.conf");
    let temporary = folder.join("nginx-tmp");
    std::fs::create_dir_all(&temporary).context("nginx's folder")?;
    std::fs::write(&file, text(&temporary, listen, upstream)).context("nginx's configuration")?;
    Ok(file)
}

fn text(temporary: &Path, listen: SocketAddr, upstream: SocketAddr) -> String {
    let temporary = temporary.display();
    format!(
        r#"daemon off;
worker_processes 2;
worker_rlimit_nofile 20000;
pid {temporary}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 16384; multi_accept on; }}
http {{
  access_log off;
  tcp_nodelay on;
  keepalive_timeout 120s;
  keepalive_requests 1000000;
  client_body_temp_path {temporary}/body;
  proxy_temp_path {temporary}/proxy;
  fastcgi_temp_path {temporary}/fastcgi;
  uwsgi_temp_path {temporary}/uwsgi;
  scgi_temp_path {temporary}/scgi;
  upstream provider {{ server {upstream}; keepalive 6000; keepalive_requests 1000000; }}
  server {{
    listen {listen} backlog=8192;
    location = /health {{ return 200 "ok"; }}
    location / {{
      proxy_pass http://provider;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 120s;
    }}
  }}
}}
"#
    )
}
