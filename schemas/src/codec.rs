//! Avro single-object encoding (Avro 1.12 specification, "Single-object encoding"): two marker bytes, the schema's
//! CRC-64-AVRO fingerprint, the datum. Owns the way to bytes and back; every form's schema stands in its own file, and
//! beside it what every release wrote (`schemas/released/`), which is read for ever: a field that a release did not have
//! takes its default, one that is no more is passed over.

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
    /// The schemas that releases wrote it with, the first one first.
    const RELEASED: &'static [&'static str];
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
        Self::codec().reader(bytes).is_ok()
    }
}

/// Reader and writer of one record.
pub struct Codec {
    header: Header,
    writer: GenericDatumWriter<'static>,
    /// By what its data begin with: the present schema first, for nearly all are written with it.
    readers: Vec<(Header, GenericDatumReader<'static>)>,
}

/// Marker and fingerprint of a schema.
type Header = [u8; HEADER_BYTES];

impl Codec {
    /// The codec that writes a checked-in schema, and reads this and the released ones.
    ///
    /// # Panics
    /// If a schema does not parse: a fault of the build, found by the first test.
    #[expect(clippy::expect_used, reason = "the schemas are compiled in; a broken one fails the first test")]
    pub fn new(schema: &str, released: &[&str]) -> Self {
        // For the whole process, and the first one to say it is heard: every codec says the same.
        apache_avro::util::max_allocation_bytes(VALUE_MAX_BYTES);
        let parse = |schema: &str| -> (Header, &'static Schema) {
            let schema = Box::leak(Box::new(Schema::parse_str(schema).expect("a checked-in schema parses")));
            let mut header = [0; HEADER_BYTES];
            header[..2].copy_from_slice(&MARKER);
            header[2..].copy_from_slice(&schema.fingerprint::<Rabin>().bytes);
            (header, schema)
        };
        let (header, present) = parse(schema);
        let mut readers: Vec<(Header, GenericDatumReader<'static>)> = Vec::new();
        for (header, schema) in [(header, present)].into_iter().chain(released.iter().map(|schema| parse(schema))) {
            if readers.iter().all(|(known, _)| *known != header) {
                let reader = GenericDatumReader::builder(schema).human_readable(false).build();
                readers.push((header, reader.expect("a closed schema")));
            }
        }
        let writer = GenericDatumWriter::builder(present).human_readable(false).build().expect("a closed schema");
        Self { header, writer, readers }
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

    /// The reader of what wrote these bytes, and the datum.
    fn reader<'a>(&self, bytes: &'a [u8]) -> Result<(&GenericDatumReader<'static>, &'a [u8]), CodecError> {
        let (header, datum) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(CodecError::NotAnObject)?;
        let [0xC3, 0x01, fingerprint @ ..] = *header else { return Err(CodecError::NotAnObject) };
        let found = self.readers.iter().find(|(known, _)| known == header);
        let (_, reader) = found.ok_or(CodecError::UnknownSchema(fingerprint))?;
        Ok((reader, datum))
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CodecError> {
        let (reader, mut datum) = self.reader(bytes)?;
        let value = reader.read_deser(&mut datum).map_err(|error| CodecError::Datum(Box::new(error)))?;
        if datum.is_empty() { Ok(value) } else { Err(CodecError::Trailing(datum.len())) }
    }
}

/// Implements [`Record`] for a type by its checked-in schema.
macro_rules! record {
    ($type:ty, $name:literal, $file:literal) => {
        $crate::codec::record!($type, $name, $file, [include_str!(concat!("../released/1/", $file))]);
    };
    ($type:ty, $name:literal, $file:literal, [$($released:expr),*]) => {
        impl $crate::codec::Record for $type {
            const NAME: &'static str = $name;
            const SCHEMA: &'static str = include_str!(concat!("../avro/", $file));
            const RELEASED: &'static [&'static str] = &[$($released),*];
            fn codec() -> &'static $crate::codec::Codec {
                static CODEC: std::sync::LazyLock<$crate::codec::Codec> = std::sync::LazyLock::new(|| {
                    $crate::codec::Codec::new(<$type as $crate::Record>::SCHEMA, <$type as $crate::Record>::RELEASED)
                });
                &CODEC
            }
        }
    };
}
pub(crate) use record;

/// The same for one that no release has written yet.
macro_rules! unreleased_record {
    ($type:ty, $name:literal, $file:literal) => {
        $crate::codec::record!($type, $name, $file, []);
    };
}
pub(crate) use unreleased_record;

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
        let codec = Codec::new(schema, &[]);
        // 128 MiB, zigzag, 7 bits a byte.
        let claim = [codec.header(), &[0x80, 0x80, 0x80, 0x80, 0x01]].concat();
        let error = codec.decode::<Text>(&claim).unwrap_err();
        let CodecError::Datum(cause) = error else { panic!("{error:?}") };
        let text = cause.to_string();
        assert!(text.contains(&format!("maximum allowed: {VALUE_MAX_BYTES}")), "{text}");
        assert!(Signal::decode(&claim).is_err());
    }

    #[test]
    fn what_an_older_schema_wrote_is_read_with_defaults_for_what_it_lacked() {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename = "Text")]
        struct Old {
            text: String,
            gone: i64,
        }
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename = "Text")]
        struct New {
            #[serde(default)]
            added: Option<String>,
            text: String,
        }
        let old = r#"{"type": "record", "name": "Text", "fields": [
            {"name": "text", "type": "string"}, {"name": "gone", "type": "long", "default": 0}]}"#;
        let new = r#"{"type": "record", "name": "Text", "fields": [
            {"name": "added", "type": ["null", "string"], "default": null}, {"name": "text", "type": "string"}]}"#;
        let written = Codec::new(old, &[]).encode(&Old { text: "kept".into(), gone: 7 });
        let expected = New { added: None, text: "kept".into() };
        assert_eq!(Codec::new(new, &[old]).decode::<New>(&written).unwrap(), expected);
        let unknown = Codec::new(new, &[]).decode::<New>(&written).unwrap_err();
        assert!(matches!(unknown, CodecError::UnknownSchema(_)), "{unknown}");
    }
}
