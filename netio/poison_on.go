//go:build poison

package netio

const poison = true
