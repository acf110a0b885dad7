//! A proxy between clients and an edge that understands frames, to break what an honest edge would mend. Everything but
//! the text frames of sockets passes as it is.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Longest head of a request or an answer, bytes.
const HEAD_MAX_BYTES: usize = 64 * 1024;

/// What becomes of the frames for one socket's client, one at a time; it may keep some for later.
pub type Tamper = Box<dyn FnMut(String) -> Vec<String> + Send>;

/// Passes connections on until it is dropped; `tamper` makes one for each socket.
pub async fn run(listener: TcpListener, server: SocketAddr, tamper: impl Fn() -> Tamper) -> Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        let tamper = tamper();
        tokio::spawn(async move {
            if let Err(error) = pass(client, server, tamper).await {
                tracing::debug!(%error, "a connection has ended");
            }
        });
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, mut tamper: Tamper) -> Result<()> {
    let mut server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (head, rest) = head(&mut client).await?;
    server.write_all(&head).await?;
    server.write_all(&rest).await?;
    if !String::from_utf8_lossy(&head).to_ascii_lowercase().contains("\r\nupgrade: websocket\r\n") {
        copy_bidirectional(&mut client, &mut server).await?;
        return Ok(());
    }
    let (answer, rest) = self::head(&mut server).await?;
    client.write_all(&answer).await?;
    if !answer.starts_with(b"HTTP/1.1 101") {
        client.write_all(&rest).await?;
        copy_bidirectional(&mut client, &mut server).await?;
        return Ok(());
    }
    let mut client = WebSocketStream::from_raw_socket(client, Role::Server, None).await;
    let mut server = WebSocketStream::from_partially_read(server, rest, Role::Client, None).await;
    loop {
        tokio::select! {
            frame = client.next() => server.send(frame.context("the client has gone")??).await?,
            frame = server.next() => match frame.context("the server has gone")?? {
                Message::Text(text) => {
                    for text in tamper(text.as_str().to_owned()) {
                        client.feed(Message::text(text)).await?;
                    }
                    client.flush().await?;
                }
                other => client.send(other).await?,
            },
        }
    }
}

/// The head of an HTTP message, and what has come behind it.
async fn head(stream: &mut TcpStream) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((bytes, rest));
        }
        ensure!(bytes.len() < HEAD_MAX_BYTES, "a head without an end");
        ensure!(stream.read_buf(&mut bytes).await? > 0, "an end before the head's");
    }
}
