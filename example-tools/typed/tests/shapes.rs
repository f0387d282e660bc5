use typed::{Axis, Geometry, Guest, Point, Rectangle, Shape};

fn square() -> Shape {
    Shape::Polygon([(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0)].map(|(x, y)| Point { x, y }).into())
}

#[test]
fn areas() {
    assert_eq!(Geometry::area(square()), Ok(4.0));
    assert_eq!(Geometry::area(Shape::Circle(1.0)), Ok(std::f64::consts::PI));
    assert!(Geometry::area(Shape::Polygon(vec![])).is_err());
}

#[test]
fn bounds_are_around_a_shape() {
    let around = Rectangle { corner: Point { x: -1.0, y: -1.0 }, width: 4.0, height: 4.0 };
    assert_eq!(Geometry::bounds(square(), Some(1.0)), Ok(around));
    assert_eq!(Geometry::bounds(Shape::Polygon(vec![]), None), Err("the polygon has no corners".into()));
}

#[test]
fn a_mirror_keeps_the_area() {
    let there = Geometry::mirror(square(), Axis::Y);
    let corner = Point { x: -2.0, y: 0.0 };
    assert_eq!(Geometry::bounds(there.clone(), None), Ok(Rectangle { corner, width: 2.0, height: 2.0 }));
    assert_eq!(Geometry::area(there), Ok(4.0));
}
