//! Plane geometry, as a component that knows nothing of Belljar: `wit/shapes.wit` says what it exports, and
//! `manifest.json` goes beside it at the upload, with a description of each function.

wit_bindgen::generate!({ path: "wit", world: "typed", additional_derives: [PartialEq] });

pub use exports::example::geometry::shapes::{Axis, Guest, Point, Rectangle, Shape};

pub struct Geometry;

// The names of exports are no names for a native linker, which builds the tests.
#[cfg(target_family = "wasm")]
export!(Geometry);

impl Guest for Geometry {
    fn area(shape: Shape) -> Result<f64, String> {
        Ok(match shape {
            Shape::Circle(radius) => std::f64::consts::PI * radius * radius,
            Shape::Rectangle(rectangle) => (rectangle.width * rectangle.height).abs(),
            Shape::Polygon(corners) => {
                let next = corners.iter().cycle().skip(1);
                let twice: f64 = corners.iter().zip(next).map(|(a, b)| a.x * b.y - b.x * a.y).sum();
                at_least_three(&corners)?;
                twice.abs() / 2.0
            }
        })
    }

    fn bounds(shape: Shape, margin: Option<f64>) -> Result<Rectangle, String> {
        let corners = match shape {
            Shape::Circle(radius) => vec![Point { x: -radius, y: -radius }, Point { x: radius, y: radius }],
            Shape::Rectangle(Rectangle { corner, width, height }) => {
                vec![corner, Point { x: corner.x + width, y: corner.y + height }]
            }
            Shape::Polygon(corners) => corners,
        };
        let margin = margin.unwrap_or(0.0);
        let least = |of: fn(&Point) -> f64| corners.iter().map(of).reduce(f64::min).ok_or("the polygon has no corners");
        let most = |of: fn(&Point) -> f64| corners.iter().map(of).reduce(f64::max).ok_or("the polygon has no corners");
        let (left, right, low, high) = (least(|p| p.x)?, most(|p| p.x)?, least(|p| p.y)?, most(|p| p.y)?);
        let corner = Point { x: left - margin, y: low - margin };
        Ok(Rectangle { corner, width: right - left + 2.0 * margin, height: high - low + 2.0 * margin })
    }

    fn mirror(shape: Shape, axis: Axis) -> Shape {
        let mirrored = |point: Point| match axis {
            Axis::X => Point { y: -point.y, ..point },
            Axis::Y => Point { x: -point.x, ..point },
        };
        match shape {
            Shape::Circle(radius) => Shape::Circle(radius),
            Shape::Rectangle(Rectangle { corner, width, height }) => {
                let opposite = mirrored(Point { x: corner.x + width, y: corner.y + height });
                let corner = mirrored(corner);
                let corner = Point { x: corner.x.min(opposite.x), y: corner.y.min(opposite.y) };
                Shape::Rectangle(Rectangle { corner, width, height })
            }
            Shape::Polygon(corners) => Shape::Polygon(corners.into_iter().map(mirrored).collect()),
        }
    }
}

fn at_least_three(corners: &[Point]) -> Result<(), String> {
    if corners.len() < 3 { Err("a polygon has at least three corners".into()) } else { Ok(()) }
}
