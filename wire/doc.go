// Package wire knows the frames of the PostgreSQL wire protocol, version 3, and
// the few messages that a proxy must read or make itself.
//
// Every message after startup is a type byte, a length of four bytes that counts
// itself and the body, and the body. A startup packet has no type byte. The
// source for all formats is the PostgreSQL manual, chapter "Frontend/Backend
// Protocol", section "Message Formats".
//
// The package neither reads nor writes sockets and keeps no state. Slices that
// it returns point into the bytes it was given unless their function says
// otherwise.
package wire
