#![allow(warnings)]
mod host;
mod http;
mod jar;
