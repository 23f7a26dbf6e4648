#include "model.h"

#include <cstring>
#include <stdexcept>

namespace megagpt {
namespace {

// Reads Protocol Buffers' wire format, field by field; throws where the bytes end too early or a length is wrong.
class WireReader {
  public:
    explicit WireReader(std::string_view bytes) : rest_(bytes) {}

    // Goes to the next field; false at the end.
    bool next() {
        if (rest_.empty()) return false;
        const uint64_t tag = varint();
        field = static_cast<int>(tag >> 3);
        switch (tag & 7) {
            case 0:
                number = varint();
                break;
            case 1:
                take(8);
                break;
            case 2:
                bytes = take(varint());
                break;
            case 5: {
                const std::string_view four = take(4);
                std::memcpy(&real, four.data(), 4);
                break;
            }
            default:
                fail();
        }
        return true;
    }

    int field = 0;
    uint64_t number = 0;     // of a varint field
    std::string_view bytes;  // of a length-delimited field
    float real = 0;          // of a 32-bit field

  private:
    uint64_t varint() {
        uint64_t value = 0;
        for (int shift = 0; shift < 64; shift += 7) {
            const auto byte = static_cast<unsigned char>(take(1)[0]);
            value |= static_cast<uint64_t>(byte & 0x7F) << shift;
            if (byte < 0x80) return value;
        }
        fail();
    }

    std::string_view take(uint64_t count) {
        if (count > rest_.size()) fail();
        const std::string_view taken = rest_.substr(0, count);
        rest_.remove_prefix(count);
        return taken;
    }

    [[noreturn]] static void fail() { throw std::runtime_error("the SentencePiece model file is damaged"); }

    std::string_view rest_;
};

Piece read_piece(std::string_view bytes) {
    Piece piece;
    for (WireReader field(bytes); field.next();) {
        if (field.field == 1) piece.text = field.bytes;
        if (field.field == 2) piece.score = field.real;
        // A number that the format does not know counts as not given.
        if (field.field == 3 && field.number >= 1 && field.number <= 6)
            piece.type = static_cast<PieceType>(field.number);
    }
    if (piece.text.empty()) throw std::runtime_error("a piece of the model is empty");
    return piece;
}

void read_trainer(std::string_view bytes, ModelFile& model) {
    for (WireReader field(bytes); field.next();) {
        if (field.field == 3) model.type = static_cast<ModelType>(field.number);
        if (field.field == 24) model.treat_whitespace_as_suffix = field.number != 0;
        if (field.field == 35) model.byte_fallback = field.number != 0;
    }
}

void read_normalizer(std::string_view bytes, ModelFile& model) {
    for (WireReader field(bytes); field.next();) {
        if (field.field == 2) model.precompiled_charsmap = field.bytes;
        if (field.field == 3) model.add_dummy_prefix = field.number != 0;
        if (field.field == 4) model.remove_extra_whitespaces = field.number != 0;
        if (field.field == 5) model.escape_whitespaces = field.number != 0;
    }
}

// The byte of a piece such as <0x0A>.
int byte_of(const std::string& text) {
    static const char digits[] = "0123456789ABCDEF";
    if (text.size() != 6 || text.compare(0, 3, "<0x") != 0 || text[5] != '>') return -1;
    const char* high = std::strchr(digits, text[3]);
    const char* low = std::strchr(digits, text[4]);
    if (high == nullptr || low == nullptr || text[3] == '\0' || text[4] == '\0') return -1;
    return static_cast<int>((high - digits) * 16 + (low - digits));
}

}  // namespace

ModelFile ModelFile::parse(std::string_view bytes) {
    ModelFile model;
    std::fill(std::begin(model.byte_ids), std::end(model.byte_ids), -1);
    for (WireReader field(bytes); field.next();) {
        if (field.field == 1) model.pieces.push_back(read_piece(field.bytes));
        if (field.field == 2) read_trainer(field.bytes, model);
        if (field.field == 3) read_normalizer(field.bytes, model);
    }
    if (model.type != ModelType::kBpe && model.type != ModelType::kUnigram) {
        throw std::runtime_error(
            "the native core encodes BPE and unigram models, and this is a word or character model");
    }
    for (size_t id = 0; id < model.pieces.size(); ++id) {
        Piece& piece = model.pieces[id];
        if (piece.text == std::string(1, '\0') && (model.byte_fallback || piece.type == PieceType::kUnused)) {
            piece.type = PieceType::kUnused;  // some converters leave it behind: sentencepiece passes it over
            continue;
        }
        if (piece.type == PieceType::kUnknown) model.unknown_id = static_cast<int>(id);
        if (piece.type == PieceType::kByte && byte_of(piece.text) >= 0) {
            model.byte_ids[byte_of(piece.text)] = static_cast<int>(id);
        }
        if (piece.type == PieceType::kUnused && model.type == ModelType::kBpe) {
            // sentencepiece takes such a piece apart again by the merge that it saw last anywhere in the text.
            throw std::runtime_error("the native core does not encode BPE models with unused pieces");
        }
    }
    return model;
}

}  // namespace megagpt
