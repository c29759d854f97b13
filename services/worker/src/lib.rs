//! Model worker.
