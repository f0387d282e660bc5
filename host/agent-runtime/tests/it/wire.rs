//! The way from a process to the database, which a test cuts.

use std::{net::SocketAddr, str::FromStr};

use domain::SecretString;
use sqlx::postgres::PgConnectOptions;
use tenancy::{Db, DbSettings};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, UnixStream},
    sync::watch,
};

pub(crate) struct Wire {
    address: SocketAddr,
    cuts: watch::Sender<()>,
}

impl Wire {
    /// To where `url` leads.
    pub(crate) async fn to(url: &str) -> Wire {
        let options = PgConnectOptions::from_str(url).unwrap();
        let socket = options.get_socket().unwrap().join(format!(".s.PGSQL.{}", options.get_port()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, cuts) = (listener.local_addr().unwrap(), watch::Sender::new(()));
        let all = cuts.clone();
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move {
            loop {
                let (mut process, _) = listener.accept().await.unwrap();
                let mut server = UnixStream::connect(&socket).await.unwrap();
                let mut cut = all.subscribe();
                tokio::spawn(async move {
                    tokio::select! {
                        // Either may leave at any moment.
                        _ = copy_bidirectional(&mut process, &mut server) => return,
                        _ = cut.changed() => drop(process),
                    }
                    // The server hears nothing of it.
                    std::future::pending::<()>().await;
                    drop(server);
                });
            }
        });
        Wire { address, cuts }
    }

    /// The database as a process at this end sees it.
    pub(crate) async fn db(&self, url: &str) -> Db {
        let options = PgConnectOptions::from_str(url).unwrap();
        let (user, database) = (options.get_username(), options.get_database().unwrap());
        let url = format!("postgres://{user}@{}/{database}?sslmode=disable", self.address);
        // Few: each that is cut costs a try.
        Db::connect(&DbSettings { url: SecretString::from(url), connections: 2 }).await.unwrap()
    }

    /// All connections are lost, as the process sees it. New ones can be made.
    pub(crate) fn cut(&self) {
        self.cuts.send_replace(());
    }
}
