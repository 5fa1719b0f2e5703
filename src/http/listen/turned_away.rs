//! Short answers for those who are not let in, and the manners of closing on a client that is still sending.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long a client may take to read its refusal and to leave.
const FAREWELL: Duration = Duration::from_secs(1);
const MOST_READ: usize = 256 << 10;

pub(super) async fn no_room(stream: TcpStream) {
    const BODY: &str = r#"{"error":{"kind":"not_serving","message":"too many connections are open","details":null}}"#;
    farewell(stream, "503 Service Unavailable", "retry-after: 1\r\n", BODY).await;
}

pub(super) async fn not_tls(stream: TcpStream) {
    const BODY: &str =
        r#"{"error":{"kind":"bad_request","message":"this listener speaks TLS: use https://","details":null}}"#;
    farewell(stream, "400 Bad Request", "", BODY).await;
}

/// Answers before the request was read. Closing a socket with bytes unread resets the connection, and the client may
/// never see the answer: what it sends is read first, for a moment.
async fn farewell(mut stream: TcpStream, status: &str, headers: &str, body: &str) {
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{headers}connection: close\r\n\r\n{body}",
        body.len()
    );
    let work = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        let (mut buffer, mut read) = ([0; 4096], 0);
        while read < MOST_READ {
            match stream.read(&mut buffer).await? {
                0 => break,
                n => read += n,
            }
        }
        std::io::Result::Ok(())
    };
    // Whoever does not wait for the answer does not get it.
    let _ = tokio::time::timeout(FAREWELL, work).await;
}
