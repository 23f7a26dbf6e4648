// A SentencePiece model file as plain data. In: the bytes of a *.model file (a ModelProto). Out: ModelFile.
// Knows the fields that encoding needs and skips all others.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace megagpt {

// Numbers as in sentencepiece_model.proto.
enum class PieceType : int { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
enum class ModelType : int { kUnigram = 1, kBpe = 2, kWord = 3, kChar = 4 };

struct Piece {
    std::string text;
    float score = 0;
    PieceType type = PieceType::kNormal;
};

struct ModelFile {
    std::vector<Piece> pieces;  // by id
    ModelType type = ModelType::kUnigram;
    bool byte_fallback = false;
    bool treat_whitespace_as_suffix = false;
    // Normalisation. The map is sentencepiece's precompiled one: u32 size, double array, NUL-terminated replacements.
    std::string precompiled_charsmap;
    bool add_dummy_prefix = true;
    bool remove_extra_whitespaces = true;
    bool escape_whitespaces = true;
    // Derived.
    int unknown_id = -1;
    int byte_ids[256];  // -1 where there is no such piece

    // Throws std::runtime_error with the reason where `bytes` is not such a file or has something that the native
    // core does not do (a word or character model).
    static ModelFile parse(std::string_view bytes);
};

// Takes the pieces of one document as they are found, left to right, each with its text: an unknown one becomes its
// bytes or one id a run.
class PieceSink {
  public:
    virtual ~PieceSink() = default;
    virtual void piece(int id, std::string_view text) = 0;
};

}  // namespace megagpt
