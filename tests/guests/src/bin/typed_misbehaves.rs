//! No toolbox: typed exports that do to their host what they can.

wit_bindgen::generate!({
    inline: r#"
        package acme:misbehaves;

        world misbehaves {
            export spin: func();
            export panic: func(words: string);
            export eat: func(bytes: u32) -> u32;
            export texts: func(count: u32, bytes: u32) -> list<string>;
            export numbers: func(count: u32) -> list<u64>;
            export connect: func(address: string) -> result<_, string>;
        }
    "#,
});

struct Misbehaves;

export!(Misbehaves);

impl Guest for Misbehaves {
    fn spin() {
        loop {
            std::hint::black_box(0);
        }
    }

    fn panic(words: String) {
        panic!("{words}");
    }

    fn eat(bytes: u32) -> u32 {
        std::hint::black_box(vec![1u8; bytes as usize]).len() as u32
    }

    fn texts(count: u32, bytes: u32) -> Vec<String> {
        vec!["x".repeat(bytes as usize); count as usize]
    }

    fn numbers(count: u32) -> Vec<u64> {
        (0..u64::from(count)).collect()
    }

    fn connect(address: String) -> Result<(), String> {
        std::net::TcpStream::connect(address).map(|_| ()).map_err(|error| error.to_string())
    }
}

fn main() {}
