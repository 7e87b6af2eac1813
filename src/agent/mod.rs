//! The source side: capture, initial replication, resend buffer, bitmap, connection.
