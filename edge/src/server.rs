//! The accept loop: our own on hyper, for deadlines, bounds on connections and an orderly end. The one place of the
//! edge that spawns tasks: one for each connection. Who is shut out is turned away here, before TLS and HTTP.

pub(crate) mod watched;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
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
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use watched::{Said, Watched};

use crate::App;
use crate::blocks::Offence;
use crate::extract::Peer;
use crate::limits::Places;
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
            Ok((stream, peer, seat)) => {
                // As cheap as can be: the connection is closed, nothing read, nothing spawned.
                let Ok(places) = app.admit(peer.ip()) else { continue };
                let acceptor = tls.as_ref().map(|tls| tls.acceptor());
                let (app, router, shutdown) = (app.clone(), router.clone(), shutdown.clone());
                let held = Held { places, _seat: seat };
                connections.spawn(connection(app, router, stream, acceptor, peer, held, shutdown));
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

/// What a connection holds until it ends or is a socket.
struct Held {
    places: Places,
    _seat: OwnedSemaphorePermit,
}

async fn connection(
    app: Arc<App>,
    router: Router,
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    peer: SocketAddr,
    mut held: Held,
    mut shutdown: watch::Receiver<bool>,
) {
    app.metrics.connections.inc();
    // Answers are written whole: waiting to join them with others would only delay them.
    if stream.set_nodelay(true).is_ok() {
        let handshake = held.places.handshake.take();
        match acceptor {
            None => exchange(&app, router, stream, peer, handshake, shutdown).await,
            Some(acceptor) => {
                let shaken = acceptor.accept_with(stream, |session| session.set_buffer_limit(Some(TLS_BUFFER_BYTES)));
                let shaken = tokio::time::timeout(app.config.request_read_timeout(), shaken);
                let shaken = tokio::select! {
                    shaken = Box::pin(shaken) => shaken,
                    () = stopped(&mut shutdown) => Ok(Err(std::io::ErrorKind::ConnectionAborted.into())),
                };
                match shaken {
                    Ok(Ok(stream)) => {
                        Box::pin(exchange(&app, router, Box::new(stream), peer, handshake, shutdown)).await;
                    }
                    Ok(Err(error)) => {
                        // Whoever goes in the middle of it has lost the network, or connected ahead of need.
                        if error.kind() == std::io::ErrorKind::InvalidData {
                            app.connection_offended(peer.ip(), Offence::Handshake);
                        }
                        tracing::debug!(%error, "a TLS handshake broke");
                    }
                    Err(_) => {
                        app.connection_offended(peer.ip(), Offence::Slow);
                        tracing::debug!("a TLS handshake took too long");
                    }
                }
            }
        }
    }
    app.metrics.connections.dec();
    drop(held);
}

/// Requests and answers over one connection. `handshake` is let go of with the first whole request.
async fn exchange<S, H>(
    app: &App,
    router: Router,
    stream: S,
    peer: SocketAddr,
    handshake: H,
    mut shutdown: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Default + Send,
{
    let stream = Watched::new(stream);
    let (heard, heard_again) = (stream.heard(), stream.heard());
    let handshake = Mutex::new(handshake);
    let service = service_fn(move |request: Request<Incoming>| {
        std::mem::take(&mut *handshake.lock());
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        let answer = router.clone().oneshot(request);
        let heard = heard_again.clone();
        async move {
            let answer = answer.await.unwrap_or_else(|never| match never {});
            // What comes from now on is the next request's.
            heard.answered();
            Ok::<_, Infallible>(answer)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        // Counted from the moment that a request is waited for: silence and single bytes make no difference.
        .header_read_timeout(app.config.request_read_timeout())
        .max_buf_size(app.config.header_max_bytes)
        .max_headers(app.config.header_fields_max)
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
        blame(app, peer.ip(), &error, heard.said());
        tracing::debug!(%error, "a connection broke");
    }
}

/// What of a connection's end counts against those at the other one.
fn blame(app: &App, peer: IpAddr, error: &hyper::Error, said: Said) {
    let offence = if error.is_parse_too_large() {
        Offence::Oversized
    } else if error.is_parse() {
        Offence::Malformed
    } else if error.is_timeout() {
        match said {
            Said::Nothing => Offence::Silent,
            Said::Something => Offence::Slow,
            // A connection that was kept for more requests, as clients do.
            Said::Enough => return,
        }
    } else {
        return;
    };
    app.connection_offended(peer, offence);
}
