//! Bounds-checked little-endian reader and writer: the only way bytes become values.

/// Bytes that are no valid encoding. Says what was being read and where.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum FormatError {
    /// The input ends inside `field`.
    #[error("{field} at byte {at} needs {needed} bytes, {left} are left")]
    Short {
        /// What was being read.
        field: &'static str,
        /// Where it begins.
        at: usize,
        /// Bytes it needs.
        needed: usize,
        /// Bytes there are.
        left: usize,
    },
    /// Bytes follow where the format ends.
    #[error("{left} bytes follow the end of {what}")]
    Trailing {
        /// What ended.
        what: &'static str,
        /// How many follow.
        left: usize,
    },
    /// The value is outside what the field allows.
    #[error("{field} is {found}, expected {expected}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What stands there.
        found: String,
        /// What may stand there.
        expected: String,
    },
    /// Content and checksum disagree.
    #[error("{what}: checksum is {found:08x}, content gives {computed:08x}")]
    Checksum {
        /// Of what.
        what: &'static str,
        /// Stored.
        found: u32,
        /// Computed.
        computed: u32,
    },
}

impl FormatError {
    /// A value that the field does not allow.
    pub fn value(
        field: &'static str,
        found: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> Self {
        Self::Value { field, found: found.to_string(), expected: expected.to_string() }
    }
}

/// Reads little-endian values off a slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes consumed so far.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn take(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], FormatError> {
        if count > self.left() {
            let (at, left) = (self.at, self.left());
            return Err(FormatError::Short { field, at, needed: count, left });
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, field)?);
        Ok(array)
    }

    /// One byte.
    ///
    /// # Errors
    /// At the end.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, FormatError> {
        self.array(field).map(u8::from_le_bytes)
    }

    /// Two bytes.
    ///
    /// # Errors
    /// At the end.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, FormatError> {
        self.array(field).map(u16::from_le_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// At the end.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, FormatError> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// At the end.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, FormatError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// Eight bytes, signed.
    ///
    /// # Errors
    /// At the end.
    pub fn i64(&mut self, field: &'static str) -> Result<i64, FormatError> {
        self.array(field).map(i64::from_le_bytes)
    }

    /// UTF-8 text with a two-byte length, at most `max` bytes.
    ///
    /// # Errors
    /// When it is longer, cut short or not UTF-8.
    pub fn text(&mut self, max: usize, field: &'static str) -> Result<&'a str, FormatError> {
        let length = usize::from(self.u16(field)?);
        if length > max {
            return Err(FormatError::value(field, length, format_args!("at most {max} bytes")));
        }
        let bytes = self.take(length, field)?;
        std::str::from_utf8(bytes).map_err(|_| FormatError::value(field, "not UTF-8", "UTF-8 text"))
    }

    /// Ends reading.
    ///
    /// # Errors
    /// When bytes are left.
    pub fn finish(self, what: &'static str) -> Result<(), FormatError> {
        match self.left() {
            0 => Ok(()),
            left => Err(FormatError::Trailing { what, left }),
        }
    }
}

/// Appends little-endian values to a vector.
#[derive(Clone, Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Raw bytes.
    pub fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    /// Text with a two-byte length; longer text is our own bug, callers bound it.
    pub fn text(&mut self, text: &str) -> &mut Self {
        let length = u16::try_from(text.len()).expect("callers bound text to their field's limit");
        self.u16(length).put(text.as_bytes())
    }
}
