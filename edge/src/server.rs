//! The accept loop: our own on hyper, for deadlines, a bound on connections and an orderly end. The one place of the
//! edge that spawns tasks: one for each connection.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::App;
use crate::extract::Peer;
use crate::tls::Tls;

/// What a TLS connection holds of what its client has not taken yet, bytes: one record. The rest waits in the outbox,
/// where it is counted (I9).
const TLS_BUFFER_BYTES: usize = 16 * 1024;

/// After a failed accept (no file handles left, say) the loop rests so long instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `shutdown` turns true, then finishes the requests under way. Sockets have their own end.
pub async fn serve(app: Arc<App>, listener: TcpListener, shutdown: watch::Receiver<bool>) {
    accept_all(app, listener, None, shutdown).await;
}

/// The same over TLS.
pub async fn serve_tls(app: Arc<App>, listener: TcpListener, tls: Arc<Tls>, shutdown: watch::Receiver<bool>) {
    accept_all(app, listener, Some(tls), shutdown).await;
}

async fn accept_all(app: Arc<App>, listener: TcpListener, tls: Option<Arc<Tls>>, mut shutdown: watch::Receiver<bool>) {
    let router = crate::routes::router(app.clone());
    let places = Arc::new(Semaphore::new(app.config.connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut shutdown) => break,
            // What has ended is let go of.
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, peer, place)) => {
                let acceptor = tls.as_ref().map(|tls| tls.acceptor());
                let (app, router, shutdown) = (app.clone(), router.clone(), shutdown.clone());
                connections.spawn(connection(app, router, stream, acceptor, peer, place, shutdown));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Returns once `shutdown` is true, or whoever could set it is gone.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    shutdown.wait_for(|stop| *stop).await.map(drop).unwrap_or_default();
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, place))
}

async fn connection(
    app: Arc<App>,
    router: Router,
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    peer: SocketAddr,
    place: OwnedSemaphorePermit,
    mut shutdown: watch::Receiver<bool>,
) {
    app.metrics.connections.inc();
    // Answers are written whole: waiting to join them with others would only delay them.
    if stream.set_nodelay(true).is_ok() {
        match acceptor {
            None => exchange(&app, router, stream, peer, shutdown).await,
            Some(acceptor) => {
                let shaken = acceptor.accept_with(stream, |session| session.set_buffer_limit(Some(TLS_BUFFER_BYTES)));
                let shaken = tokio::time::timeout(app.config.request_read_timeout(), shaken);
                let shaken = tokio::select! {
                    shaken = Box::pin(shaken) => shaken,
                    () = stopped(&mut shutdown) => Ok(Err(std::io::ErrorKind::ConnectionAborted.into())),
                };
                match shaken {
                    Ok(Ok(stream)) => Box::pin(exchange(&app, router, Box::new(stream), peer, shutdown)).await,
                    Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake broke"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                }
            }
        }
    }
    app.metrics.connections.dec();
    drop(place);
}

/// Requests and answers over one connection.
async fn exchange<S>(app: &App, router: Router, stream: S, peer: SocketAddr, mut shutdown: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        let answer = router.clone().oneshot(request);
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.config.request_read_timeout())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stopped(&mut shutdown) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
