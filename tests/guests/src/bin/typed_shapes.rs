//! No toolbox: plain typed exports of every kind of type. Each function of `echo` answers with what it was given.

wit_bindgen::generate!({
    inline: r#"
        package acme:shapes@1.2.0;

        interface types {
            record point { x: s32, y: s32, label: option<string> }
            enum colour { red, green, blue }
            flags styles { bold, italic, under-line }
            variant shape { circle(f64), polygon(list<point>), nothing }
            record integers { a: s8, b: u8, c: s16, d: u16, e: s32, f: u32, g: s64, h: u64 }
        }

        interface echo {
            use types.{point, colour, styles, shape, integers};

            numbers: func(it: integers) -> integers;
            floats: func(small: f32, large: f64) -> tuple<f32, f64>;
            texts: func(letter: char, text: string) -> tuple<char, string>;
            bytes: func(it: list<u8>) -> list<u8>;
            points: func(it: list<point>) -> list<point>;
            styled: func(colour: colour, styles: styles) -> tuple<colour, styles>;
            shapes: func(it: list<shape>) -> list<shape>;
            maybe: func(it: option<option<u32>>) -> option<option<u32>>;
            attempts: func(it: list<result<u32, string>>) -> list<result<u32, string>>;
            nothing: func();
        }

        world shapes {
            export echo;
            export add: func(left-hand: u32, right-hand: u32) -> u32;
            export shout: func(text: string) -> string;
            export divide: func(dividend: s64, divisor: s64) -> result<s64, string>;
            export check: func(even: u32) -> result<_, u32>;
            export read-the-clock-of-this-machine-as-a-text: func() -> string;
        }
    "#,
});

use exports::acme::shapes::echo::{Colour, Guest as Echo, Integers, Point, Shape, Styles};

struct Shapes;

export!(Shapes);

impl Guest for Shapes {
    fn add(left_hand: u32, right_hand: u32) -> u32 {
        left_hand.wrapping_add(right_hand)
    }

    fn shout(text: String) -> String {
        println!("shouting {} bytes", text.len());
        text.to_uppercase()
    }

    fn divide(dividend: i64, divisor: i64) -> Result<i64, String> {
        dividend.checked_div(divisor).ok_or_else(|| format!("{dividend} cannot be divided by {divisor}"))
    }

    fn check(even: u32) -> Result<(), u32> {
        if even % 2 == 0 { Ok(()) } else { Err(even) }
    }

    fn read_the_clock_of_this_machine_as_a_text() -> String {
        format!("{:?}", std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH))
    }
}

impl Echo for Shapes {
    fn numbers(it: Integers) -> Integers {
        it
    }

    fn floats(small: f32, large: f64) -> (f32, f64) {
        (small, large)
    }

    fn texts(letter: char, text: String) -> (char, String) {
        (letter, text)
    }

    fn bytes(it: Vec<u8>) -> Vec<u8> {
        it
    }

    fn points(it: Vec<Point>) -> Vec<Point> {
        it
    }

    fn styled(colour: Colour, styles: Styles) -> (Colour, Styles) {
        (colour, styles)
    }

    fn shapes(it: Vec<Shape>) -> Vec<Shape> {
        it
    }

    fn maybe(it: Option<Option<u32>>) -> Option<Option<u32>> {
        it
    }

    fn attempts(it: Vec<Result<u32, String>>) -> Vec<Result<u32, String>> {
        it
    }

    fn nothing() {}
}

fn main() {}
