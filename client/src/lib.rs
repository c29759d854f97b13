//! Client library and the steer command.
