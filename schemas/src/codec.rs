//! Avro single-object encoding (Avro 1.12 specification, "Single-object encoding"): two marker bytes, the schema's
//! CRC-64-AVRO fingerprint, the datum. Owns the way to bytes and back; every form's schema stands in its own file.

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use apache_avro::{Schema, rabin::Rabin};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::limits::BATCH_MAX_BYTES;

/// Marker of the single-object encoding, version 1.
const MARKER: [u8; 2] = [0xC3, 0x01];
/// Marker and fingerprint.
const HEADER_BYTES: usize = 10;

/// Largest text or list of a record that is read, bytes: the library makes room for what a length claims before it looks
/// what is there. No record that we write is as large: commands come in a request ([`FRAME_MAX_BYTES`]), events of one
/// creation fit a batch.
///
/// [`FRAME_MAX_BYTES`]: crate::limits::FRAME_MAX_BYTES
const VALUE_MAX_BYTES: usize = BATCH_MAX_BYTES;

/// Why bytes are not the record that they should be.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Too short, or without the marker of a single object.
    #[error("not an Avro single object")]
    NotAnObject,
    /// Written with a schema that this reader does not know.
    #[error("unknown schema fingerprint {0:02x?}")]
    UnknownSchema([u8; 8]),
    /// Right header, broken datum.
    #[error("broken Avro datum")]
    Datum(#[source] Box<apache_avro::Error>),
    /// Bytes after the end of the datum.
    #[error("{0} bytes too many")]
    Trailing(usize),
}

/// A record with an Avro schema of its own.
pub trait Record: Serialize + DeserializeOwned {
    /// Name of the record, as in its schema.
    const NAME: &'static str;
    /// Its schema, an Avro schema in JSON.
    const SCHEMA: &'static str;
    /// The codec of its schema.
    fn codec() -> &'static Codec;

    /// The record as one Avro single object.
    fn encode(&self) -> Bytes {
        Self::codec().encode(self)
    }

    /// The record of one Avro single object; anything else is an error, never a panic.
    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        Self::codec().decode(bytes)
    }

    /// Whether these bytes claim to be this record: a topic may hold several kinds.
    fn is(bytes: &[u8]) -> bool {
        bytes.len() >= HEADER_BYTES && bytes[..HEADER_BYTES] == Self::codec().header
    }
}

/// Reader and writer of one schema.
pub struct Codec {
    header: [u8; HEADER_BYTES],
    writer: GenericDatumWriter<'static>,
    reader: GenericDatumReader<'static>,
}

impl Codec {
    /// The codec of a checked-in schema.
    ///
    /// # Panics
    /// If the schema does not parse: a fault of the build, found by the first test.
    #[expect(clippy::expect_used, reason = "the schemas are compiled in; a broken one fails the first test")]
    pub fn new(schema: &str) -> Self {
        // For the whole process, and the first one to say it is heard: every codec says the same.
        apache_avro::util::max_allocation_bytes(VALUE_MAX_BYTES);
        let schema: &'static Schema =
            Box::leak(Box::new(Schema::parse_str(schema).expect("a checked-in schema parses")));
        let mut header = [0; HEADER_BYTES];
        header[..2].copy_from_slice(&MARKER);
        header[2..].copy_from_slice(&schema.fingerprint::<Rabin>().bytes);
        let writer = GenericDatumWriter::builder(schema).human_readable(false).build().expect("a closed schema");
        let reader = GenericDatumReader::builder(schema).human_readable(false).build().expect("a closed schema");
        Self { header, writer, reader }
    }

    /// What every record of this schema begins with.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    #[expect(clippy::expect_used, reason = "a Rust form that does not fit its own schema fails its golden test")]
    fn encode<T: Serialize>(&self, value: &T) -> Bytes {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&self.header);
        self.writer.write_ser(&mut out, value).expect("the Rust form fits its schema");
        Bytes::from(out)
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CodecError> {
        if bytes.len() < HEADER_BYTES || bytes[..2] != MARKER {
            return Err(CodecError::NotAnObject);
        }
        if bytes[..HEADER_BYTES] != self.header {
            let mut fingerprint = [0; 8];
            fingerprint.copy_from_slice(&bytes[2..HEADER_BYTES]);
            return Err(CodecError::UnknownSchema(fingerprint));
        }
        let mut datum = &bytes[HEADER_BYTES..];
        let value = self.reader.read_deser(&mut datum).map_err(|error| CodecError::Datum(Box::new(error)))?;
        if datum.is_empty() { Ok(value) } else { Err(CodecError::Trailing(datum.len())) }
    }
}

/// Implements [`Record`] for a type by its checked-in schema.
macro_rules! record {
    ($type:ty, $name:literal, $file:literal) => {
        impl $crate::codec::Record for $type {
            const NAME: &'static str = $name;
            const SCHEMA: &'static str = include_str!(concat!("../avro/", $file));
            fn codec() -> &'static $crate::codec::Codec {
                static CODEC: std::sync::LazyLock<$crate::codec::Codec> =
                    std::sync::LazyLock::new(|| $crate::codec::Codec::new(<$type as $crate::Record>::SCHEMA));
                &CODEC
            }
        }
    };
}
pub(crate) use record;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::Signal;

    #[test]
    fn a_length_that_cannot_be_is_not_made_room_for() {
        let schema = r#"{"type": "record", "name": "Text", "fields": [{"name": "text", "type": "string"}]}"#;
        #[derive(Debug, serde::Deserialize)]
        struct Text {
            #[expect(dead_code, reason = "only parsed")]
            text: String,
        }
        let codec = Codec::new(schema);
        // 128 MiB, zigzag, 7 bits a byte.
        let claim = [codec.header(), &[0x80, 0x80, 0x80, 0x80, 0x01]].concat();
        let error = codec.decode::<Text>(&claim).unwrap_err();
        let CodecError::Datum(cause) = error else { panic!("{error:?}") };
        let text = cause.to_string();
        assert!(text.contains(&format!("maximum allowed: {VALUE_MAX_BYTES}")), "{text}");
        assert!(Signal::decode(&claim).is_err());
    }
}
