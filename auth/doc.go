// Package auth finds out who a client is, and what to log in to a server with.
//
// A login is a function of the client, its credentials and the configuration
// alone: no state of pools or servers has a part in it. Whatever fails looks the
// same from outside; an unknown user is led through the same exchange as a known
// one with a wrong password. The reason is in the error's text, for the log.
//
//	trust, any      client                      proxy
//	                                         <- (AuthenticationOk, by the caller)
//	plain           PasswordMessage          <- AuthenticationCleartextPassword
//	md5             PasswordMessage          <- AuthenticationMD5Password, salt
//	scram-sha-256                            <- AuthenticationSASL, mechanisms
//	                SASLInitialResponse      ->
//	                                         <- AuthenticationSASLContinue
//	                SASLResponse             ->
//	                                         <- AuthenticationSASLFinal
//
// With md5, a user whose secret is a SCRAM verifier is led through scram-sha-256.
// Unknown users are shown what most users of the auth_file have: the exchange, the
// iterations and the length of the salt, and a salt that is always the same for a
// name while the process runs.
//
// # Concurrency
//
// Userlist is frozen after it is read, Authenticator may be used by any number of
// goroutines. The package starts no goroutine; what may take long (PBKDF2) runs
// in the caller's, behind a semaphore of half the processors.
package auth
